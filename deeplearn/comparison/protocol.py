"""How an optimizer is judged: tune on validation, run the winner again with fresh seeds, look at the test set once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplearn.comparison import store, table
from deeplearn.comparison.lanes import Plan
from deeplearn.comparison.sweep import Sweep, sweep
from deeplearn.experiment import Experiment, Target
from deeplearn.training.loop import monitored

FRESH = 10_000  # from the first tuning seed to the first of the reruns: more tuning seeds do not reach it


class Result(NamedTuple):
    """What came of one optimizer on one workload.

    Fields:
      tuned: every point with every tuning seed.
      winner: the best of its points.
      final: the winner with fresh seeds, evaluated on the test split; `tuned`'s runs of it where there are no reruns.
    """

    tuned: Sweep
    winner: dict[str, float]
    final: Sweep


class Outcome(NamedTuple):
    """What came of all optimizers on one workload: their results, and the target and validation metric that decide."""

    name: str
    results: list[Result]
    goal: Target
    metric: str


class Work(NamedTuple):
    """What one sweep of this call trained, and how it went."""

    runs: int
    seconds: float
    compile_seconds: float
    plan: Plan


class Live(NamedTuple):
    """How far the runs of an optimizer are.

    Fields:
      done: the fraction of all their steps.
      ended, runs, diverged: how many runs have ended, there are, and have diverged.
      metric, best: what decides, and the best value so far; NaN if there is none.
    """

    done: float
    ended: int
    runs: int
    diverged: int
    metric: str
    best: float


def goal_of(target: Target | None, names) -> tuple[Target, str]:
    """The target that decides, and the validation metric it is about, among the names of a run's curves."""
    evaluated = [name.removeprefix("validation/") for name in names if name.startswith("validation/")]
    goal = monitored(target, evaluated)
    return goal, f"validation/{goal.metric}"


def follow(target: Target | None, runs: int, progress: Callable[[Live], None]):
    """The `report` of a sweep, see there, that tells `progress` how far it is."""
    best, before, group = np.nan, 0, 0

    def report(done, total, ended, values):
        nonlocal best, before, group
        goal, metric = goal_of(target, values)
        diverged = ~np.isfinite([values["loss"], values["validation/loss"]]).all(axis=0)
        kept = values[metric][~diverged]
        better, most = (np.fmax, np.max) if goal.rises else (np.fmin, np.min)
        best = better(best, most(kept)) if kept.size else best
        lost = before + int(diverged.sum())
        if ended != group:
            before, group = lost, ended
        progress(Live(done / total, ended, runs, lost, goal.metric, float(best)))

    return report


def judge(points, seeds, reruns: int, target: Target | None, finish: Callable[..., Sweep]) -> Result:
    """Tune, choose, run again: `finish(phase, runs)` gives the finished runs of "tune" and of "final"."""
    tuned = finish("tune", [(point, seed) for point in points for seed in seeds])
    goal, metric = goal_of(target, tuned.curves)
    best = table.best_point(tuned, metric, goal)
    winner = tuned.points[best]
    if not reruns:
        return Result(tuned, winner, table.of_point(tuned, best))
    return Result(tuned, winner, finish("final", [(winner, seeds[0] + FRESH + i) for i in range(reruns)]))


def run(
    directory: Path,
    name: str,
    experiment: Experiment,
    points: Sequence[dict[str, float]],
    seeds: Sequence[int],
    reruns: int,
    progress: Callable[[Live], None] = lambda live: None,
    together: bool | None = None,
) -> tuple[Result, list[Work]]:
    """Train what is not finished yet, and judge.

    Args:
      directory: of the finished runs.
      name: the optimizer with its settings.
      experiment: wired with that optimizer.
      points, seeds: to be tuned over, each with each.
      reruns: how many fresh seeds the winner has; 0: none, and the test split stays unseen.
      progress: told after each evaluation how far the runs are.
      together: see deeplearn.comparison.sweep.

    Returns:
      The Result, and the Work of each sweep: none where every run was there already.
    """
    works = []

    def finish(phase, runs):
        nonlocal together
        missing = store.missing(directory, name, phase, runs)
        if missing:
            report = follow(experiment.target, len(missing), progress)
            trained, plan = sweep(name, experiment, missing, test=phase == "final", report=report, together=together)
            store.write(directory, phase, trained)
            together = plan.together  # what was faster once need not be tried again
            seconds = float(trained.seconds[:, -1].sum())
            works.append(Work(len(missing), seconds, float(trained.compile_seconds.sum()), plan))
        return store.read(directory, name, phase, runs)

    return judge(points, seeds, reruns, experiment.target, finish), works


class Unfinished(Exception):
    """So many runs of an optimizer are not there yet."""


def stored(directory: Path, name: str, points, seeds, reruns: int, target: Target | None) -> Result:
    """The Result of finished runs alone; Unfinished, with the number of those missing, if they are not all there."""

    def finish(phase, runs):
        if missing := store.missing(directory, name, phase, runs):
            raise Unfinished(f"{len(missing)} of {len(runs)} {phase} runs of {name} are not there yet")
        return store.read(directory, name, phase, runs)

    return judge(points, seeds, reruns, target, finish)


def outcome(name: str, results: list[Result], target: Target | None) -> Outcome:
    """The Outcome of a workload from the results of its optimizers."""
    return Outcome(name, results, *goal_of(target, results[0].tuned.curves))


def counting_compilation(result: Result) -> Result:
    """The same with each run's share of the compilation on its clock."""

    def counted(sweep: Sweep) -> Sweep:
        return sweep._replace(seconds=sweep.seconds + sweep.compile_seconds[:, None])

    return result._replace(tuned=counted(result.tuned), final=counted(result.final))
