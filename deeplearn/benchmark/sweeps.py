"""64 runs as one sweep, against 64 processes, and against a Python loop that shares one compiled step."""

import os
import subprocess
import sys
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
      command: `compare`, from its start to its end, nothing in the persistent cache.
      processes: 64 commands `train`, two at a time on two cores, their programs in the cache; from MEASURED.
      sweep_compile, sweep: within a process, nothing in the cache: the compilation of a sweep, and the rest of it,
        training and evaluation.
      loop_compile, loop: the same of a Python loop over runs and steps that calls one compiled step; from MEASURED.
      lane_bytes: what the sweep's program takes for a lane more.
    """

    command: float
    processes: float
    sweep_compile: float
    sweep: float
    loop_compile: float
    loop: float
    lane_bytes: float


def launch(name: str, cache: Path, command: str, workdir: Path, *flags: str, **fields) -> subprocess.Popen:
    """A command on the CPU, `train` on one device of it; `fields` replace those of the config."""
    changes = {"mesh": "data:1", "optimizer": "adam", **fields} if command == "train" else fields
    flags = [f"--config={name}", f"--workdir={workdir}", *(f"--config.{key}={x}" for key, x in changes.items()), *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "deeplearn", command, *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen) -> None:
    """Wait for a command; RuntimeError with what it said if it failed."""
    _, said = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{' '.join(child.args)} failed:\n{said}")


def experiment(name: str, cache: Path, divide: bool = False, **fields):
    """The workload on the CPU, one device or a device a core; imports JAX, and gives its programs this cache."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    from deeplearn import experiment
    from deeplearn.commands import runs

    runs.prepare_jax(divide)
    config = experiment.configure(name, {"mesh": "data:1", "optimizer": "adam", **fields})
    return experiment.load(name).build(config)


def sweep(connection, name: str, cache: Path, **fields) -> None:
    """A process that sweeps the runs; sends the seconds of compilation and of the rest, and bytes for a lane more."""
    wired = experiment(name, cache, divide=True, **fields)
    import jax

    from deeplearn.comparison import points
    from deeplearn.comparison.sweep import sweep

    runs = [(point, seed) for point in points.grid("adam", RATES) for seed in range(SEEDS)]
    start = time.perf_counter()
    done, plan = sweep("adam", wired, runs)
    seconds, compiling = time.perf_counter() - start, float(done.compile_seconds.sum())
    _, few = sweep("adam", wired._replace(steps=1, eval_every=1), runs[:FEW], together=plan.together)
    lanes = (plan.lanes - few.lanes) / jax.device_count()  # of a device more
    connection.send((compiling, seconds - compiling, (plan.bytes - few.bytes) / lanes))


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
    evaluate = jax.jit(evaluation.make_evaluate(wired.task, wired.config.eval_batch_size))

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
    took = time.perf_counter() - compiled
    connection.send((compiled - start - took / MEASURED, took))


def measure(name: str, progress: Callable[[str], None] = lambda line: None, **fields) -> Figures:
    """The Figures of a workload; `fields` replace those of its config."""
    with tempfile.TemporaryDirectory() as directory:
        directory, runs = Path(directory), RATES * SEEDS
        progress(f"{name}: {runs} runs in one sweep")
        flags = ("--optimizers=adam", f"--learning_rates={RATES}", f"--seeds={SEEDS}", "--reruns=0")
        start = time.perf_counter()
        finish(launch(name, directory / "cold", "compare", directory / "sweep", *flags, **fields))
        command = time.perf_counter() - start
        with timing.process(sweep, name, directory / "inside", **fields) as connection:
            sweep_compile, swept, lane = timing.receive(connection, "sweep")
        progress(f"{name}: processes")
        finish(launch(name, directory / "alone", "train", directory / "first", **fields))  # fills the cache
        start = time.perf_counter()
        for seed in range(0, MEASURED, 2):
            pair = [
                launch(name, directory / "alone", "train", directory / str(i), seed=i, **fields)
                for i in (seed, seed + 1)
            ]
            for child in pair:
                finish(child)
        processes = (time.perf_counter() - start) / MEASURED * runs
        progress(f"{name}: a Python loop")
        with timing.process(loop, name, directory / "loop", **fields) as connection:
            loop_compile, took = timing.receive(connection, "loop")
        return Figures(command, processes, sweep_compile, swept, loop_compile, took / MEASURED * runs, lane)
