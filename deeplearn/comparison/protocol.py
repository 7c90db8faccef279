"""How an optimizer is judged: tune on validation, run the winner again with fresh seeds, look at the test set once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class Work(NamedTuple):
    """What one sweep of this call trained, and how it went."""

    runs: int
    seconds: float
    compile_seconds: float
    plan: Plan


def goal_of(experiment: Experiment) -> tuple[Target, str]:
    """The target that decides, and the validation metric it is about."""
    goal = monitored(experiment.target, {"accuracy": 0} if experiment.data.classes else {"loss": 0})
    return goal, f"validation/{goal.metric}"


def run(
    directory: Path,
    name: str,
    experiment: Experiment,
    points: Sequence[dict[str, float]],
    seeds: Sequence[int],
    reruns: int,
    progress=lambda done, total: None,
    together: bool | None = None,
) -> tuple[Result, list[Work]]:
    """Train what is not finished yet, and judge.

    Args:
      directory: of the finished runs.
      name: the optimizer with its settings.
      experiment: wired with that optimizer.
      points, seeds: to be tuned over, each with each.
      reruns: how many fresh seeds the winner has; 0: none, and the test split stays unseen.
      progress, together: see deeplearn.comparison.sweep.

    Returns:
      The Result, and the Work of each sweep: none where every run was there already.
    """
    goal, metric = goal_of(experiment)
    works = []

    def finish(phase, runs):
        nonlocal together
        missing = store.missing(directory, name, phase, runs)
        if missing:
            trained, plan = sweep(name, experiment, missing, test=phase == "final", report=progress, together=together)
            store.write(directory, phase, trained)
            together = plan.together  # what was faster once need not be tried again
            works.append(Work(len(missing), float(trained.seconds[:, -1].sum()), trained.compile_seconds, plan))
        return store.read(directory, name, phase, runs)

    tuned = finish("tune", [(point, seed) for point in points for seed in seeds])
    best = table.best_point(tuned, metric, goal)
    winner = tuned.points[best]
    final = (
        finish("final", [(winner, seeds[0] + FRESH + i) for i in range(reruns)])
        if reruns
        else table.of_point(tuned, best)
    )
    return Result(tuned, winner, final), works
