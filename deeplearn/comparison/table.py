"""From sweeps to the numbers that people compare."""

from typing import NamedTuple

import numpy as np

from deeplearn.comparison.sweep import Sweep
from deeplearn.experiment import Target


class Row(NamedTuple):
    """One optimizer at its best learning rate; medians over seeds, infinity where a target is not reached."""

    optimizer: str
    learning_rate: float
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


def best_learning_rate(sweep: Sweep, metric: str, goal: Target) -> float:
    """The rate whose median over seeds of the final validation value is best, of equals the one with the lower loss.

    Infinite values take part, so that a rate at which most seeds diverge is never the best.
    """
    values, losses = final(sweep, metric, goal), final(sweep, "validation/loss", Target("loss", False, 0.0))
    sign = 1 if goal.rises else -1

    def quality(rate):
        runs = sweep.learning_rates == rate
        return sign * np.median(values[runs]), -np.median(losses[runs])

    return float(max(np.unique(sweep.learning_rates), key=quality))


def row(sweep: Sweep, metric: str, goal: Target) -> Row:
    """The row of one optimizer."""
    rate = best_learning_rate(sweep, metric, goal)
    runs = sweep.learning_rates == rate
    values = sweep.curves[metric][runs]  # (S, E)
    first = first_reached(sweep, metric, goal)[runs]
    steps, seconds = (np.append(x, np.inf)[first] for x in (sweep.steps, sweep.seconds))
    last = final(sweep, metric, goal)[runs]
    extreme = (np.nanmax if goal.rises else np.nanmin)(values, axis=1)
    return Row(
        optimizer=sweep.optimizer,
        learning_rate=rate,
        best=float(np.median(extreme)),
        final=float(np.median(last)),
        spread=float(np.std(values[:, -1])),
        steps_to_target=float(np.median(steps)),
        seconds_to_target=float(np.median(seconds)),
        reached=f"{int(np.isfinite(steps).sum())} of {runs.sum()}",
        diverged=f"{int(sweep.diverged.sum())} of {len(sweep.seeds)}",
    )
