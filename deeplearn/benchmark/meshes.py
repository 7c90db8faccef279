"""What a mesh costs on devices that share one CPU: time beside one device's for the same work, and bytes exchanged.

Forced devices are no speed-up on so few cores: whatever they take more than one device is the price of dividing.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from deeplearn.benchmark import timing

DEVICES = 8
MODEL = "shakespeare_gpt"
TOGETHER = 32  # examples of a batch, whatever the devices
EACH = 4  # examples of a device
MESHES = [
    f"{axis}:{n}" for axis in ("data", "fsdp", "tensor", "sequence") for n in (2, 4, 8) if (axis, n) != ("tensor", 8)
]


class Figures(NamedTuple):
    """A mesh.

    Fields:
      together: seconds of a step of TOGETHER examples over those of one device, the rounds' median.
      each: the same of EACH examples a device, over one device with all of them; None where a batch is not divided.
      sent: bytes that a device sends in a step of TOGETHER examples, by what was compiled.
      theory: the same, by the formula.
    """

    together: float
    each: float | None
    sent: float
    theory: float


def parts(mesh: str) -> tuple[str, int]:
    """The axis of a mesh of one axis, and its size."""
    axis, _, size = mesh.partition(":")
    return axis, int(size)


def theory(mesh: str, parameters: int, batch: int, length: int, width: int, depth: int) -> float:
    """Bytes that a device sends in a step, of float32.

    data sums P gradients, 2 P (n - 1) / n. fsdp gathers P parameters forward and again backward, and sums and scatters
    their gradients, 3 P (n - 1) / n (Rajbhandari et al. 2020, ZeRO, section 7). tensor sums the B T width activations
    of each layer twice forward and twice backward, 4 x 2 B T width depth (n - 1) / n (Shoeybi et al. 2019,
    Megatron-LM, section 3). sequence sums gradients as data does, and in each layer keys and values, of B T width / n
    elements each, go n - 1 steps round a ring, forward and again backward, where their gradients make all n steps (Liu
    et al. 2023, Ring attention, section 3).
    """
    axis, n = parts(mesh)
    activations = batch * length * width * depth
    elements = {
        "data": 2 * parameters * (n - 1),
        "fsdp": 3 * parameters * (n - 1),
        "tensor": 4 * 2 * activations * (n - 1),
        "sequence": 2 * parameters * (n - 1) + 2 * activations * (2 * (n - 1) + n),
    }
    return 4 * elements[axis] / n


def work(connection, rounds: int, seconds: float) -> None:
    """A process of DEVICES devices: sends a line on its progress, or at the end the Figures."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    os.environ["NPROC"] = str(4 * DEVICES)  # devices that wait for each other hold a thread each
    import jax

    from deeplearn import experiment
    from deeplearn.data import blank
    from deeplearn.parallel import cost
    from deeplearn.training import program as programs

    config = experiment.load(MODEL).get_config()
    sizes = (config.length, config.width, config.depth)

    @functools.cache
    def build(mesh, batch):
        with blank.instead():
            fields = {"mesh": mesh, "batch_size": batch}
            return programs.build(experiment.load(MODEL).build(experiment.configure(MODEL, fields)))

    @functools.cache
    def clock(mesh, batch):
        """What runs so many steps and returns the seconds of one, and how many a turn has."""
        program = build(mesh, batch)
        state, step = program.init(), 0

        def run(steps):
            nonlocal state, step
            start = time.perf_counter()
            state, metrics = program.chunk(state, program.feed.data(step, steps), steps)
            jax.block_until_ready(metrics)
            step += steps
            return (time.perf_counter() - start) / steps

        run(1)
        pace = run(3)
        return run, max(1, min(100, round(seconds / pace)))

    def ratio(mesh, batch):
        """Of a step's seconds to those of one device, as the median of rounds of a turn each."""
        (one, few), (divided, more) = clock("data:1", batch), clock(mesh, batch)
        return statistics.median(divided(more) / one(few) for _ in range(rounds))

    found = {}
    for mesh in MESHES:
        connection.send(f"meshes: {mesh}")
        axis, n = parts(mesh)
        program = build(mesh, TOGETHER)
        parameters = sum(x.size for x in jax.tree.leaves(program.abstract.params))
        steps = jax.ShapeDtypeStruct((), "int32")
        text = program.chunk.lower(program.abstract, program.feed.abstract(1), steps).compile().as_text()
        found[mesh] = Figures(
            together=ratio(mesh, TOGETHER),
            each=None if axis in ("tensor", "sequence") else ratio(mesh, EACH * n),
            sent=sum(cost.of(text).sent.values()),
            theory=theory(mesh, parameters, TOGETHER, *sizes),
        )
    connection.send(found)


def measure(rounds: int, seconds: float, progress: Callable[[str], None] = lambda line: None) -> dict[str, Figures]:
    """The Figures of every mesh in MESHES."""
    with timing.process(work, rounds, seconds) as connection:
        while isinstance(found := timing.receive(connection, "meshes"), str):
            progress(found)
    return found
