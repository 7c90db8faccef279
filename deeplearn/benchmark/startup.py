"""What comes before speed: the time to the help and to the first step, compilation, memory."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deeplearn.benchmark import timing
from deeplearn.benchmark.cases import CASES
from deeplearn.training.logs import METRICS

CASE = "mnist_cnn_64"  # whose compilation and memory are measured
CONFIG = "digits_mlp"  # the experiment that is started

FIGURES = {
    "help_seconds": "`train --help`",
    "first_step_cold_seconds": f"`train {CONFIG}` to its first step, nothing in the persistent cache",
    "first_step_warm_seconds": "the same once more, its programs in the cache",
    "compile_cold_seconds": f"compilation of {CASE}, nothing in the persistent cache",
    "compile_warm_seconds": "the same once more",
    "peak_memory_ours_bytes": f"peak memory of {CASE}, ours",
    "peak_memory_torch_bytes": f"peak memory of {CASE}, PyTorch",
}


def command_seconds(*arguments: str) -> float:
    """How long `python -m deeplearn ARGUMENTS` takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "deeplearn", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step_seconds(workdir: Path, cache: Path) -> float:
    """From the command `train` to the first line of its log, after one step; `cache` keeps its programs."""
    command = [sys.executable, "-m", "deeplearn", "train", f"--config={CONFIG}", f"--workdir={workdir}"]
    command += [
        "--config.log_every=1",
        "--config.eval_every=2",
        "--config.steps=2",
    ]  # a line before evaluation
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    log = workdir / METRICS
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        while not (log.exists() and log.stat().st_size) and child.poll() is None:
            time.sleep(0.002)
        seconds = time.perf_counter() - start
        said, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said.decode()}")
    return seconds


def work(connection, cache: Path) -> None:
    """A process that compiles the training program of CASE and sends the seconds, tracing included."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    from deeplearn.benchmark import ours
    from deeplearn.commands import runs
    from deeplearn.training import program as programs

    runs.prepare_jax()
    program = programs.build(ours.experiment(CASES[CASE]))
    data = program.feed.data(0, 1)
    start = time.perf_counter()
    program.chunk.lower(program.abstract, data, 1).compile()
    connection.send(time.perf_counter() - start)


def compile_seconds(cache: Path) -> float:
    with timing.process(work, cache) as connection:
        return timing.receive(connection, "compilation")


def measure(progress: Callable[[str], None] = lambda line: None) -> dict[str, float]:
    """The FIGURES, seconds and bytes; those of PyTorch only where it is installed."""
    progress("startup: help")
    figures = {"help_seconds": statistics.median(command_seconds("train", "--help") for _ in range(5))}
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        for cache in ("cold", "warm"):
            progress(f"startup: {cache} cache")
            figures[f"first_step_{cache}_seconds"] = first_step_seconds(directory / cache, directory / "first")
            figures[f"compile_{cache}_seconds"] = compile_seconds(directory / "second")
    progress("startup: memory")
    for name, result in timing.measure(CASE, rounds=1, seconds=1.0, names=("ours", "torch")).items():
        if isinstance(result, timing.Figures):
            figures[f"peak_memory_{name}_bytes"] = result.peak_bytes
    return figures
