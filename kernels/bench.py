"""The measured table: our kernels against XLA's, cuDNN's and PyTorch's, contenders taking turns in one run.

    python -m kernels.bench attention|convolution [--save]

A figure is the median over turns; a turn runs one contender for a while. Fresh random data every time.
`--save` writes kernels/results/attention_<platform>.json, by which `attention` chooses among its
implementations.
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TURNS, SECONDS, SLOW = 5, 0.5, 2.0
PACKAGES = ("jax", "jaxlib", "torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "tokamax")


def turn(run: Callable[[], None], seconds: float) -> float:
    """Median seconds of a call, of those that fit this time."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory() -> int:
    """Bytes, of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(connection) -> None:
    """A process that builds a contender when it is sent one, and runs it whenever it is told to."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    while make := connection.recv():
        run = make()
        start = time.perf_counter()
        run()
        connection.send((peak_memory(), time.perf_counter() - start))
        while seconds := connection.recv():
            connection.send(turn(run, seconds))


@contextlib.contextmanager
def processes(
    names: Iterable[str], seconds: float = SECONDS
) -> Iterator[Callable[[dict[str, Callable]], dict[str, tuple[float, int]]]]:
    """A process for each name, so that the contenders' threads do not meet; yields a function that measures some.

    It takes {name: a function, which can be pickled, that returns what to time}, and gives of each the median seconds
    and the peak bytes of its process. What takes longer than SLOW at the first call is not called again.
    """
    context = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for name in names:
        pipes[name], there = context.Pipe()
        children.append(context.Process(target=work, args=(there,), daemon=True))
        children[-1].start()
        there.close()

    def measure(contenders):
        peak, times = {}, {}
        for name, make in contenders.items():  # one after the other: while one is built, none is timed
            pipes[name].send(make)
            peak[name], first = pipes[name].recv()
            times[name] = [first] if first > SLOW else []
        quick = [name for name, taken in times.items() if not taken]
        for _ in range(TURNS):
            for name in quick:
                pipes[name].send(seconds)
                times[name].append(pipes[name].recv())
        for name in contenders:
            pipes[name].send(0)
        return {name: (statistics.median(times[name]), peak[name]) for name in contenders}

    yield measure
    for pipe in pipes.values():
        pipe.send(None)
    for child in children:
        child.join()


def in_processes(contenders: dict[str, Callable]) -> dict[str, tuple[float, int]]:
    """Median seconds and peak bytes of each contender, each in a new process of its own."""
    with processes(contenders) as measure:
        return measure(contenders)


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
            times[name].append(turn(run, SECONDS))
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
    parser.add_argument("kernel", choices=["attention", "convolution"])
    parser.add_argument("--save", action="store_true", help="write the figures to kernels/results/")
    asked = parser.parse_args(arguments)
    from kernels import target

    benchmark = importlib.import_module(f"kernels.{asked.kernel}.benchmark")
    kind = target.device()[0]
    rows = benchmark.on_cpu() if kind == "cpu" else benchmark.on_gpu()
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{asked.kernel}_{kind}.json"
        command = f"python -m kernels.bench {asked.kernel} --save"
        path.write_text(json.dumps({**machine(), "command": command, "rows": rows}, indent=1, allow_nan=False) + "\n")
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
