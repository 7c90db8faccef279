"""The measured table: our kernels against XLA's, cuDNN's and PyTorch's, contenders taking turns in one run.

    python -m kernels.bench attention [--save]

A figure is the median over turns; a turn runs one contender for about half a second. Fresh random data every time.
`--save` writes kernels/results/attention_<platform>.json, by which `attention` chooses among its implementations.
"""

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TURNS, SECONDS = 5, 0.5
PACKAGES = ("jax", "jaxlib", "torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "tokamax")


def turn(run: Callable[[], None]) -> float:
    """Median seconds of a call."""
    times, end = [], time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory() -> int:
    """Bytes, of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(connection, make: Callable[[], Callable[[], None]]) -> None:
    """A process that runs a contender whenever it is told to, and sends the seconds of a call."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    run = make()
    run()
    connection.send(peak_memory())
    while connection.recv():
        connection.send(turn(run))


def in_processes(contenders: dict[str, Callable]) -> dict[str, tuple[float, int]]:
    """Median seconds and peak bytes of each contender, each in a process of its own so that their threads do not meet.

    contenders: a function, which can be pickled, that returns what to time.
    """
    context = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for name, make in contenders.items():
        pipes[name], there = context.Pipe()
        children.append(context.Process(target=work, args=(there, make)))
        children[-1].start()
        there.close()
    memory = {name: pipe.recv() for name, pipe in pipes.items()}
    times = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for child in children:
        child.join()
    return {name: (statistics.median(times[name]), memory[name]) for name in contenders}


def in_turns(contenders: dict[str, Callable]) -> dict[str, float | str]:
    """Median seconds of each contender, all in this process; the first line of its error for one that fails."""
    runs, found = {}, {}
    for name, make in contenders.items():
        try:
            runs[name] = make()
            runs[name]()
        except Exception as error:  # others' kernels refuse in ways of their own: the table says how
            runs.pop(name, None)
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    times = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            times[name].append(turn(run))
    return found | {name: statistics.median(taken) for name, taken in times.items()}


def machine() -> dict:
    """What a figure depends on besides the code."""
    import jax

    device = jax.devices()[0]
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "device": cpu or platform.processor() if device.platform == "cpu" else device.device_kind,
        "cores": os.cpu_count(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "date": datetime.date.today().isoformat(),
    }


def _lines(path):
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__.splitlines()[0])
    parser.add_argument("kernel", choices=["attention"])
    parser.add_argument("--save", action="store_true", help="write the figures to kernels/results/")
    asked = parser.parse_args(arguments)
    from kernels import target
    from kernels.attention import benchmark

    kind = target.device()[0]
    rows = benchmark.on_cpu() if kind == "cpu" else benchmark.on_gpu()
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{asked.kernel}_{kind}.json"
        command = f"python -m kernels.bench {asked.kernel} --save"
        path.write_text(json.dumps({**machine(), "command": command, "rows": rows}, indent=1) + "\n")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
