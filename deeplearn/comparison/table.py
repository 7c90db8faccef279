"""From sweeps to the numbers that people compare."""

from typing import NamedTuple

import numpy as np

from deeplearn.comparison.sweep import Sweep
from deeplearn.experiment import Target


class Row(NamedTuple):
    """One optimizer at its best point; medians over seeds, infinity where a target is not reached."""

    optimizer: str
    point: dict[str, float]
    best: float
    final: float
    spread: float
    steps_to_target: float
    seconds_to_target: float
    reached: str
    diverged: str


def final(sweep: Sweep, metric: str, goal: Target) -> np.ndarray:
    """(R,): the last value of a metric, the worst there is for a run that diverged."""
    worst = -np.inf if goal.rises else np.inf
    return np.where(sweep.diverged, worst, sweep.curves[metric][:, -1])


def first_reached(sweep: Sweep, metric: str, goal: Target) -> np.ndarray:
    """(R,): the index of the evaluation that first reached the target, E where none did."""
    values = sweep.curves[metric]
    reached = (values >= goal.value) if goal.rises else (values <= goal.value)  # (R, E)
    reached &= ~sweep.diverged[:, None]
    return np.where(reached.any(axis=1), reached.argmax(axis=1), values.shape[1])


def best_point(sweep: Sweep, metric: str, goal: Target) -> int:
    """The point whose median over seeds of the final validation value is best, of equals the one with the lower loss.

    Infinite values take part, so that a point at which most seeds diverge is never the best.
    """
    values, losses = final(sweep, metric, goal), final(sweep, "validation/loss", Target("loss", False, 0.0))
    sign = 1 if goal.rises else -1

    def quality(point):
        runs = sweep.point == point
        return sign * np.median(values[runs]), -np.median(losses[runs])

    return max(range(len(sweep.points)), key=quality)


def describe(point: dict[str, float]) -> str:
    """A point as people write it; of a learning rate alone, the number.

    >>> describe({"learning_rate": 0.001, "b1": 0.91234})
    'learning_rate=0.001, b1=0.912'
    >>> describe({"learning_rate": 0.001})
    '0.001'
    """
    if list(point) == ["learning_rate"]:
        return f"{point['learning_rate']:.3g}"
    return ", ".join(f"{key}={value:.3g}" for key, value in point.items())


def row(sweep: Sweep, metric: str, goal: Target) -> Row:
    """The row of one optimizer."""
    best = best_point(sweep, metric, goal)
    runs = sweep.point == best
    values = sweep.curves[metric][runs]  # (S, E)
    first = first_reached(sweep, metric, goal)[runs]
    steps, seconds = (np.append(x, np.inf)[first] for x in (sweep.steps, sweep.seconds))
    last = final(sweep, metric, goal)[runs]
    extreme = (np.nanmax if goal.rises else np.nanmin)(values, axis=1)
    return Row(
        optimizer=sweep.optimizer,
        point=sweep.points[best],
        best=float(np.median(extreme)),
        final=float(np.median(last)),
        spread=float(np.std(values[:, -1])),
        steps_to_target=float(np.median(steps)),
        seconds_to_target=float(np.median(seconds)),
        reached=f"{int(np.isfinite(steps).sum())} of {runs.sum()}",
        diverged=f"{int(sweep.diverged.sum())} of {len(sweep.seeds)}",
    )
