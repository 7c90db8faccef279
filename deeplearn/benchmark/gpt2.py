"""GPT-2's training on one accelerator: tokens a second and model FLOPs utilization, by implementation of attention.

Each has a process of its own; they take turns. The step is that of `train`: 124 million parameters, bfloat16, AdamW,
one batch without parts.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from deeplearn.benchmark import timing
from deeplearn.errors import UserError

ATTENTION = {"gpu": ("hopper", "cudnn", "xla"), "tpu": ("tpu", "xla")}
BATCH = 64  # examples of 1,024 tokens


class Figures(NamedTuple):
    """One implementation of attention.

    Fields:
      tokens: a second, the rounds' median; rounds: of each, round by round.
      mfu: FLOPs of the formulas, 6 N a token and attention, over the time and the device's peak (Chowdhery et al. 2022,
        PaLM, section 4.1).
      peak_bytes: the most memory that the device had in use.
    """

    tokens: float
    rounds: list[float]
    mfu: float
    peak_bytes: int


def work(connection, name: str, fields: dict) -> None:
    """A process that trains: sends tokens and FLOPs of a step and the device's kind; then, for each request of seconds,
    those of a step. What fails sends its first line."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the device
    import jax

    from deeplearn import experiment
    from deeplearn.data import blank
    from deeplearn.parallel import ahead
    from deeplearn.training import program as programs
    from kernels.attention import backends

    def build(**more):
        changed = {"mesh": "data:1", "accumulate": 1, "batch_size": BATCH, **fields, **more}
        with blank.instead():
            return experiment.load("gpt2").build(experiment.configure("gpt2", changed))

    def named(request, arrays, **_):
        if reason := backends.refusal(request, arrays, name):
            raise NotImplementedError(f"{name} {reason}")
        return name

    backends.fastest = named
    wired, flops = build(), ahead.model_flops(build(remat="none"))

    def draw(x):
        """Tokens at random: where all are alike, as in blank data, their gradients would wait for each other."""
        return jax.random.randint(jax.random.key(0), x.shape, 0, wired.tokenizer.vocabulary_size, x.dtype)

    def run(steps):
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):  # not in one call, of which each length would be compiled
            state, metrics = program.chunk(state, data, 1)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / steps

    try:
        program = programs.build(wired)
        state, data = program.init(), jax.tree.map(draw, program.feed.abstract(1))
        run(1)
        pace = run(2)
    except RuntimeError as error:  # of JAX, or a refusal
        connection.send(str(error).partition("\n")[0])
        return
    device = jax.devices()[0]
    connection.send((wired.batch_size * wired.config.length, flops, device.device_kind))
    while seconds := connection.recv():
        taken = run(max(1, round(seconds / pace)))
        memory = device.memory_stats() or {}
        connection.send((taken, memory.get("peak_bytes_in_use", 0)))


def platform(connection) -> None:
    """A process that sends what JAX would run on."""
    import jax

    connection.send(jax.default_backend())


def implementations() -> tuple[str, ...]:
    """Those of attention for this machine's accelerator; UserError where there is none."""
    with timing.process(platform) as connection:
        found = timing.receive(connection, "gpt2")
    if found not in ATTENTION:
        raise UserError(f"gpt2 is measured on a GPU or a TPU, and JAX finds only a {found}: leave it out of --cases")
    return ATTENTION[found]


def measure(
    names: tuple[str, ...], rounds: int, seconds: float, progress: Callable[[str], None] = lambda line: None, **fields
) -> dict[str, Figures | str]:
    """The Figures of implementations of attention, or why one has none; `fields` replace those of GPT-2's config."""
    with ExitStack() as stack:
        connections, described = {}, {}
        for name in names:
            progress(f"gpt2: {name} warms up")
            connections[name] = stack.enter_context(timing.process(work, name, fields))
            described[name] = timing.receive(connections[name], name)
        ready = [name for name, message in described.items() if not isinstance(message, str)]
        turns = {name: [] for name in ready}
        for i in range(rounds):
            progress(f"gpt2: round {i + 1} of {rounds}")
            for name in ready:
                connections[name].send(seconds)
                turns[name].append(timing.receive(connections[name], name))
        for name in ready:
            connections[name].send(0)
    return {name: figures(turns[name], *described[name]) if name in turns else described[name] for name in described}


def figures(turns: list[tuple[float, int]], tokens: int, flops: float, kind: str) -> Figures:
    """Of seconds and peak bytes of each turn; a device whose peak is not known has no utilization."""
    from deeplearn.parallel import topologies

    step = statistics.median(taken for taken, _ in turns)
    chip = topologies.of_kind(kind)
    mfu = flops / step / chip.flops if chip else float("nan")
    return Figures(tokens / step, [tokens / taken for taken, _ in turns], mfu, max(peak for _, peak in turns))
