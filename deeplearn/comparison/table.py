"""From sweeps to the numbers that people compare."""

import math
from typing import NamedTuple

import numpy as np

from deeplearn.comparison import scores
from deeplearn.comparison.sweep import Sweep
from deeplearn.experiment import Target


class Row(NamedTuple):
    """One optimizer at its best point; medians over seeds, infinity where a target is not reached.

    `test` is NaN where the test split was not looked at; `diverged` counts the runs of the search; `basin` is that of
    the learning rate, in decades, after a ">" if it may be wider, empty where other hyperparameters were searched too.
    """

    optimizer: str
    point: dict[str, float]
    best: float
    final: float
    spread: float
    test: float
    steps_to_target: float
    examples_to_target: float
    seconds_to_target: float
    reached: str
    diverged: str
    basin: str
    compile_seconds: float


def number(value: float, digits: int = 4) -> str:
    """A number as a table shows it; a dash for what is not finite.

    >>> number(0.97916), number(math.inf)
    ('0.9792', '-')
    """
    return f"{value:.{digits}g}" if math.isfinite(value) else "-"


def best_of(values, goal: Target, axis: int | None = None) -> np.ndarray:
    """The best of the values that are finite, NaN where none is.

    >>> float(best_of([math.nan, 0.5, 0.9, math.inf], Target("accuracy", True, 1.0)))
    0.9
    """
    values = np.asarray(values, float)
    better = np.fmax if goal.rises else np.fmin  # which leave NaN out
    return better.reduce(np.where(np.isfinite(values), values, np.nan), axis=axis)


def final(sweep: Sweep, metric: str, goal: Target) -> np.ndarray:
    """(R,): the last value of a metric, the worst there is where it is not finite and for a run that diverged."""
    return worst_where(sweep.diverged, sweep.curves[metric][:, -1], goal)


def worst_where(condition, values: np.ndarray, goal: Target) -> np.ndarray:
    """The values, the worst there is where the condition holds and where they are not finite."""
    return np.where(condition | ~np.isfinite(values), -np.inf if goal.rises else np.inf, values)


def first_reached(sweep: Sweep, metric: str, goal: Target) -> np.ndarray:
    """(R,): the index of the evaluation that first reached the target, E where none did."""
    values = sweep.curves[metric]
    reached = (values >= goal.value) if goal.rises else (values <= goal.value)  # (R, E)
    reached &= np.isfinite(values) & ~sweep.diverged[:, None]
    return np.where(reached.any(axis=1), reached.argmax(axis=1), values.shape[1])


def steps_to_target(sweep: Sweep, metric: str, goal: Target) -> np.ndarray:
    """(R,): the step that first reached the target, infinity where none did."""
    return np.append(sweep.steps, np.inf)[first_reached(sweep, metric, goal)]


def best_point(sweep: Sweep, metric: str, goal: Target) -> int:
    """The point that reaches the target first; of equals that of the best final value, then that of the lowest loss.

    All are medians over seeds. Infinite values take part, so that a point at which most seeds diverge is never the
    best.
    """
    steps = steps_to_target(sweep, metric, goal)
    values, losses = final(sweep, metric, goal), final(sweep, "validation/loss", Target("loss", False, 0.0))
    sign = 1 if goal.rises else -1

    def quality(point):
        runs = sweep.point == point
        return -np.median(steps[runs]), sign * np.median(values[runs]), -np.median(losses[runs])

    return max(range(len(sweep.points)), key=quality)


def of_point(sweep: Sweep, point: int) -> Sweep:
    """The runs of one point."""
    runs = sweep.point == point
    return sweep._replace(
        points=(sweep.points[point],),
        point=np.zeros(runs.sum(), int),
        seeds=sweep.seeds[runs],
        seconds=sweep.seconds[runs],
        curves={name: x[runs] for name, x in sweep.curves.items()},
        test={name: x[runs] for name, x in sweep.test.items()},
        compile_seconds=sweep.compile_seconds[runs],
    )


def only_rates(sweep: Sweep) -> bool:
    """Whether the learning rate is all that was searched."""
    return all(list(point) == ["learning_rate"] for point in sweep.points)


class RatePoint(NamedTuple):
    """The last value of a point's runs that did not diverge: median, least and greatest, NaN if all did."""

    rate: float
    middle: float
    low: float
    high: float
    diverged: int
    runs: int
    point: dict[str, float]


def sensitivity(tuned: Sweep, metric: str) -> list[RatePoint]:
    """Every point by its learning rate, ascending; none where that was not searched. NaN where a seed diverged."""
    if "learning_rate" not in tuned.points[0]:
        return []

    def of(i, point):
        runs = tuned.point == i
        values, lost = tuned.curves[metric][runs, -1], int(tuned.diverged[runs].sum())
        found = (np.median(values), values.min(), values.max()) if not lost else (np.nan,) * 3
        return RatePoint(point["learning_rate"], *(float(x) for x in found), lost, int(runs.sum()), point)

    return sorted((of(i, point) for i, point in enumerate(tuned.points)), key=lambda found: found.rate)


class Budget(NamedTuple):
    """What a search of only k of the points finds, k = 1 .. P, each (P,): see deeplearn.comparison.scores.

    Fields:
      expected: the best last value, a mean; infinitely bad for a k with which all may diverge.
      median: the least steps to the target.
      chance: that one of them reaches the target.
    """

    expected: np.ndarray
    median: np.ndarray
    chance: np.ndarray


def budget(tuned: Sweep, metric: str, goal: Target) -> Budget:
    """The Budget of an optimizer's search; a point counts by the median over its seeds."""

    def middle(values):
        return np.array([np.median(values[tuned.point == i]) for i in range(len(tuned.points))])  # (P,)

    steps = middle(steps_to_target(tuned, metric, goal))
    expected = scores.best_of(middle(final(tuned, metric, goal)), goal.rises)
    return Budget(expected, scores.median_best_of(steps), scores.chance_of_reaching(np.isfinite(steps)))


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The median over seeds of (S, E), and its 95 % bootstrap band: three (E,)."""
    low, high = scores.bootstrap(values[:, None], lambda drawn: np.median(drawn[:, :, 0], axis=1), resamples=1000)
    return np.median(values, axis=0), low, high


def basin(tuned: Sweep, metric: str, goal: Target) -> str:
    """How far the learning rate may be from its best for a last value within a tenth of the best one; see Row."""
    if not only_rates(tuned) or tuned.diverged.all():
        return ""
    values = final(tuned, metric, goal)
    middle = [np.median(values[tuned.point == i]) for i in range(len(tuned.points))]
    if not np.isfinite(middle).any():
        return ""
    found = scores.basin([point["learning_rate"] for point in tuned.points], middle, goal.rises)
    return f"{'>' * found.open}{found.decades:.1f}"


def describe(point: dict[str, float]) -> str:
    """A point as people write it; of a learning rate alone, the number. What is near 1 keeps its distance from it.

    >>> describe({"learning_rate": 0.00123456, "b1": 0.91234, "b2": 0.99961})
    'learning_rate=0.00123, b1=0.9123, b2=0.99961'
    >>> describe({"learning_rate": 0.001})
    '0.001'
    """
    if list(point) == ["learning_rate"]:
        return f"{point['learning_rate']:.3g}"

    def short(value):
        digits = 3 if not 0.9 < value < 1 else 2 - math.floor(math.log10(1 - value))
        return f"{value:.{digits}g}"

    return ", ".join(f"{key}={short(value)}" for key, value in point.items())


def row(winner: Sweep, tuned: Sweep, metric: str, goal: Target) -> Row:
    """The row of one optimizer, from the runs of its best point and those of the whole search."""
    values = winner.curves[metric]  # (S, E)
    first = first_reached(winner, metric, goal)  # (S,)
    seconds = np.append(winner.seconds, np.full((len(first), 1), np.inf), axis=1)[np.arange(len(first)), first]
    steps, last = steps_to_target(winner, metric, goal), final(winner, metric, goal)
    extreme = worst_where(False, best_of(values, goal, axis=1), goal)
    return Row(
        optimizer=winner.optimizer,
        point=winner.points[0],
        best=float(np.median(extreme)),
        final=float(np.median(last)),
        spread=float(np.std(np.where(np.isfinite(values[:, -1]), values[:, -1], np.nan))),
        test=float(np.median(worst_where(False, winner.test[goal.metric], goal))) if winner.test else np.nan,
        steps_to_target=float(np.median(steps)),
        examples_to_target=float(np.median(np.append(winner.examples, np.inf)[first])),
        seconds_to_target=float(np.median(seconds)),
        reached=f"{int(np.isfinite(steps).sum())} of {len(steps)}",
        diverged=f"{int(tuned.diverged.sum())} of {len(tuned.seeds)}",
        basin=basin(tuned, metric, goal),
        compile_seconds=float(tuned.compile_seconds.sum() + (winner.compile_seconds.sum() if winner.test else 0.0)),
    )
