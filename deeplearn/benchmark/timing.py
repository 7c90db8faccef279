"""Who is how fast: contenders in processes of their own, which take turns.

A process apiece, because the threads of two frameworks in one process get in each other's way; one works at a
time and the others sleep. What a machine does beside the benchmark meets all contenders alike, so the ratios
within a round are steadier than the rates.
"""

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from deeplearn.benchmark.cases import CASES
from deeplearn.benchmark.contender import CONTENDERS, Contender, Unavailable, candidates


class Turn(NamedTuple):
    """What a contender did in a turn.

    Fields:
      steps, seconds: done, and taken.
      loss: of the last step, or of the last chunk of steps on the mean.
      peak_bytes: the most memory that its process has held so far.
    """

    steps: int
    seconds: float
    loss: float
    peak_bytes: int


class Figures(NamedTuple):
    """One contender in one case.

    Fields:
      rates: examples a second, round by round.
      loss: the last.
      peak_bytes: the most memory that its process held.
      parameters, detail: the Contender's.
    """

    rates: list[float]
    loss: float
    peak_bytes: int
    parameters: int
    detail: str

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def clock(contender: Contender, steps: int) -> Turn:
    """Time `steps` steps of it."""
    start = time.perf_counter()
    loss = contender.run(steps)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return Turn(steps, seconds, loss, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def warm_up(contender: Contender, seconds: float) -> float:
    """Run it for about `seconds`; returns the seconds that a step takes."""
    contender.run(1)  # what compiles, compiles here
    steps = 1
    while (turn := clock(contender, steps)).seconds < seconds / 2:
        steps *= 2
    return turn.seconds / turn.steps


def quickest(contenders: list[Contender], seconds: float) -> tuple[Contender, float]:
    """The quickest of them, and the seconds that a step of it takes; each is warmed up twice, in turn."""
    passes = [[warm_up(contender, seconds) for contender in contenders] for _ in range(2)]
    paces = [min(times) for times in zip(*passes, strict=True)]
    return min(zip(contenders, paces, strict=True), key=lambda pair: pair[1])


def work(connection, name: str, case_name: str, seconds: float) -> None:
    """A contender's process: sends its parameters and detail, or Unavailable; then a Turn for each request.

    A request is the number of seconds to run for. The process ends when the other side hangs up.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported: all are measured on the same device
    try:
        contender, pace = quickest(candidates(name, CASES[case_name]), seconds)
    except Unavailable as error:
        connection.send(error)
        return
    connection.send((contender.parameters, contender.detail))
    while True:
        try:
            seconds = connection.recv()
        except EOFError:
            return
        connection.send(clock(contender, max(1, round(seconds / pace))))


@contextmanager
def process(target: Callable, *args, **keywords):
    """A process that runs `target(connection, *args, **keywords)`; gives the other end of its connection."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=target, args=(there, *args), kwargs=keywords)
    child.start()
    there.close()
    try:
        with here:
            yield here
    finally:
        child.join()


def receive(connection, name: str):
    """What the process sends next; RuntimeError if it died."""
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name!r} died; why stands above") from None


def measure(
    case_name: str,
    rounds: int,
    seconds: float,
    names: Iterable[str] = tuple(CONTENDERS),
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Figures | str]:
    """Every contender's Figures in a case, or the reason why there are none.

    Each is warmed up by itself; then, `rounds` times, each in turn runs for about `seconds`.
    """
    with ExitStack() as stack:
        connections, described = {}, {}
        for name in names:
            progress(f"{case_name}: {name} warms up")
            connections[name] = stack.enter_context(process(work, name, case_name, seconds))
            described[name] = receive(connections[name], name)
        turns = {name: [] for name, message in described.items() if not isinstance(message, Unavailable)}
        for i in range(rounds):
            progress(f"{case_name}: round {i + 1} of {rounds}")
            for name, taken in turns.items():
                connections[name].send(seconds)
                taken.append(receive(connections[name], name))

    def figures(taken: list[Turn], parameters: int, detail: str) -> Figures:
        rates = [CASES[case_name].batch_size * turn.steps / turn.seconds for turn in taken]
        return Figures(rates, taken[-1].loss, taken[-1].peak_bytes, parameters, detail)

    return {
        name: figures(turns[name], *message) if name in turns else str(message) for name, message in described.items()
    }
