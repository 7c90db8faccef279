"""64 runs as one sweep, against 64 processes, and against a Python loop that shares one compiled step."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deeplearn.benchmark import timing

WORKLOADS = ("sequence_rnn", "digits_mlp")
RATES, SEEDS = 16, 4  # 64 runs of Adam
MEASURED = 4  # processes, and runs of the loop, that stand for 64
FEW = 16  # lanes, to see what a lane more takes


class Figures(NamedTuple):
    """Seconds for all 64 runs, each evaluated after every epoch, and bytes.

    Fields:
      sweep: a process that sweeps them, from its start to its end, nothing in the persistent cache.
      processes: 64 processes of a run each, two at a time on two cores, their programs in the cache; from MEASURED.
      sweep_inside, loop: within a process, compilation included, the sweep, and a loop over runs and steps that calls
        one compiled step; the loop from MEASURED runs.
      lane_bytes: what the sweep's program takes for a lane more.
    """

    sweep: float
    processes: float
    sweep_inside: float
    loop: float
    lane_bytes: float


def experiment(name: str, cache: Path, **fields):
    """The workload on one device of the CPU; imports JAX, and gives its programs this cache."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    from deeplearn import experiment
    from deeplearn.commands import runs

    runs.prepare_jax()
    module = experiment.load(name)
    config = module.get_config()
    with config.unlocked():
        config.update({"mesh": "data:1", "optimizer": "adam", **fields})
    return module.build(config)


def sweep(connection, name: str, cache: Path, **fields) -> None:
    """A process that sweeps the runs; sends the seconds that took, and the bytes of its program for FEW and all."""
    wired = experiment(name, cache, **fields)
    import jax

    from deeplearn.comparison import points
    from deeplearn.comparison.sweep import sweep

    runs = [(point, seed) for point in points.grid("adam", RATES) for seed in range(SEEDS)]
    start = time.perf_counter()
    _, plan = sweep("adam", wired, runs)
    seconds = time.perf_counter() - start
    _, few = sweep("adam", wired._replace(steps=1, eval_every=1), runs[:FEW], together=plan.together)
    lanes = (plan.lanes - few.lanes) / jax.device_count()  # of a device more
    connection.send((seconds, (plan.bytes - few.bytes) / lanes))


def alone(connection, name: str, cache: Path, seed: int, **fields) -> None:
    """A process that trains one run as `train` does, without its files and pictures."""
    wired = experiment(name, cache, seed=seed, **fields)
    from deeplearn.training import program as programs

    program = programs.build(wired)
    state, step = program.init(), 0
    while step < wired.steps:
        length = min(wired.eval_every - step % wired.eval_every, wired.log_every, wired.steps - step)
        state, _ = program.chunk(state, program.feed.data(step, length), length)
        step += length
        if step % wired.eval_every == 0 or step == wired.steps:
            program.evaluate(state, "validation")
    connection.send(None)


def loop(connection, name: str, cache: Path, **fields) -> None:
    """A process that trains MEASURED runs step by step; sends the seconds of compilation, and of the runs."""
    wired = experiment(name, cache, **fields)
    import jax
    import numpy as np

    from deeplearn.data import order
    from deeplearn.training import evaluation, step
    from deeplearn.training.state import ORDER, create

    start = time.perf_counter()
    train, validation = (jax.device_put(dict(wired.data.split(split).arrays)) for split in ("train", "validation"))
    train_step = step.make_step(wired.task, wired.optimizer)
    one = jax.jit(lambda state, rows: train_step(state, {key: x[rows] for key, x in train.items()}), donate_argnums=0)
    init = jax.jit(lambda seed: create(wired.task, wired.optimizer, seed))
    evaluate = jax.jit(evaluation.make_evaluate(wired.task))

    def run(seed):
        state, size = init(seed), len(wired.data.train)
        positions = np.arange(wired.steps * wired.batch_size).reshape(wired.steps, -1)
        rows = order.indices(jax.random.fold_in(state.rng, ORDER), positions, size)
        for number in range(wired.steps):
            state, _ = one(state, rows[number])
            if (number + 1) % wired.eval_every == 0:
                jax.device_get(evaluate(state.params, state.model_state, state.rng, validation))
        jax.block_until_ready(state)

    run(0)
    compiled = time.perf_counter()
    for seed in range(MEASURED):
        run(seed)
    connection.send((compiled - start, time.perf_counter() - compiled))


def measure(name: str, progress: Callable[[str], None] = lambda line: None, **fields) -> Figures:
    """The Figures of a workload; `fields` replace those of its config."""
    with tempfile.TemporaryDirectory() as directory:
        directory, runs = Path(directory), RATES * SEEDS
        progress(f"{name}: {runs} runs in one sweep")
        start = time.perf_counter()
        with timing.process(sweep, name, directory / "sweep", **fields) as connection:
            inside, lane = timing.receive(connection, "sweep")
        swept = time.perf_counter() - start
        progress(f"{name}: processes")
        with timing.process(alone, name, directory / "alone", 0, **fields) as connection:
            timing.receive(connection, "alone")  # fills the cache
        start = time.perf_counter()
        for seed in range(0, MEASURED, 2):
            with (
                timing.process(alone, name, directory / "alone", seed, **fields) as first,
                timing.process(alone, name, directory / "alone", seed + 1, **fields) as second,
            ):
                timing.receive(first, "alone")
                timing.receive(second, "alone")
        processes = (time.perf_counter() - start) / MEASURED * runs
        progress(f"{name}: a Python loop")
        with timing.process(loop, name, directory / "loop", **fields) as connection:
            compiling, took = timing.receive(connection, "loop")
        return Figures(swept, processes, inside, compiling + took / MEASURED * runs, lane)
