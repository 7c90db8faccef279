"""The line that an optimizer has while its runs train, and when they have."""

import sys
import threading
import time
from collections.abc import Callable

from deeplearn.comparison import table
from deeplearn.comparison.protocol import Live, Outcome, Work

EVERY = 30.0  # seconds between lines where there is no terminal to rewrite one on


def stopping(tell: Callable[[Live], None], pressed: threading.Event) -> Callable[[Live], None]:
    """`tell`, which raises KeyboardInterrupt once the event is set.

    A signal's handler must not raise it: Python drops what is raised within a callback of the garbage collector.
    """

    def told(live: Live) -> None:
        tell(live)
        if pressed.is_set():
            raise KeyboardInterrupt

    return told


def follow(label: str, stream=None, clock=time.monotonic) -> Callable[[Live], None]:
    """What tells how far the runs are: done, diverged, best so far, time left; on a terminal one line, rewritten.

    >>> ticks = iter((0.0, 30.0))
    >>> follow("adam", clock=lambda: next(ticks))(Live(0.25, 16, 64, 2, "accuracy", 0.97512))
    adam            25 %, 16 of 64 runs done, 2 diverged, best accuracy 0.9751, 1:30 left
    """
    stream = stream or sys.stdout
    started = said = clock()
    before = 0.0

    def tell(live: Live) -> None:
        nonlocal said, before, started
        now = clock()
        if live.done < before:  # the next runs of the same optimizer
            started = now
        before = live.done
        left = (now - started) * (1 - live.done) / live.done
        text = (
            f"{label:14} {100 * live.done:3.0f} %, {live.ended} of {live.runs} runs done, {live.diverged} diverged,"
            f" best {live.metric} {live.best:.4g}, {int(left) // 60}:{int(left) % 60:02} left"
        )
        if stream.isatty():
            print(f"\r\x1b[2K{text}", end="", file=stream, flush=True)
        elif now - said >= EVERY:
            said = now
            print(text, file=stream, flush=True)

    return tell


def ended(outcome: Outcome, works: list[Work]) -> list[str]:
    """A line for each sweep that the last optimizer of the outcome needed, or one that says that none was."""
    result = outcome.results[-1]
    tuned, label = result.tuned, f"{result.tuned.optimizer:14}"
    best = table.best_of(tuned.curves[outcome.metric], outcome.goal)
    found = f"{int(tuned.diverged.sum())} diverged, best {outcome.goal.metric} {best:.4g}"
    if not works:
        return [f"{label} all runs are there already; {found}"]
    return [
        f"{label} {work.runs} runs of {tuned.steps[-1]} steps in {work.seconds:.1f} s, after"
        f" {work.compile_seconds:.1f} s of compilation; {work.plan}; {found}"
        for work in works
    ]
