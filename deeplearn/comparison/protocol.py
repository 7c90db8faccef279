"""How an optimizer is judged: tune on validation, run the winner again with fresh seeds, look at the test set once."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplearn.comparison import lanes as planning
from deeplearn.comparison import plans, store, table
from deeplearn.comparison.lanes import Plan
from deeplearn.comparison.names import Run
from deeplearn.comparison.study import FRESH
from deeplearn.comparison.sweep import Prepared, Sweep, prepare, train
from deeplearn.experiment import Experiment, Target
from deeplearn.training.loop import monitored


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
    """What one sweep of this call trained, and how it went.

    Fields:
      runs: how many were missing and are stored now; the other runs of their slices were trained with them again.
      seconds: of the training of these slices.
      compile_seconds: that their programs took to compile.
      plan: how they shared the devices.
    """

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
        best = table.best_of([best, *values[metric][~diverged]], goal)
        lost = before + int(diverged.sum())
        if ended != group:
            before, group = lost, ended
        progress(Live(done / total, ended, runs, lost, goal.metric, float(best)))

    return report


def judge(points, seeds, reruns: int, target: Target | None, finish: Callable[..., Sweep]) -> Result:
    """Tune, choose the best point, and run that again with fresh seeds.

    Args:
      points: hyperparameters, dicts of floats.
      seeds: of the tuning; the fresh ones begin FRESH after the first.
      reruns: the number of fresh seeds; 0: the tuning runs are the result.
      target: who reaches it first wins; None: the best by the metric that `goal_of` chooses.
      finish: `finish(phase, runs)` returns the finished runs of "tune" or of "final".
    """
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
    *,
    lanes: int | None = None,
    identity: str | None = None,
    accepted: Collection[str | None] | None = None,
    replan: bool = False,
) -> tuple[Result, list[Work]]:
    """Train what is not finished yet, and judge.

    The plan of the runs is stored before they train, and each slice of runs when it has trained. However often the
    training is interrupted, every run gets the bits that it would have had without an interruption.

    Args:
      directory: of the finished runs of the workload.
      name: the optimizer with its settings.
      experiment: wired with that optimizer.
      points, seeds: to be tuned over, each with each.
      reruns: how many fresh seeds the winner has; 0: none, and the test split stays unseen.
      progress: told after each evaluation how far the runs are.
      together: whether runs that have no plan yet go side by side or one after another; None: by rule.
      lanes: how many of them one program trains; None: by rule.
      identity: the hash of everything that can change the runs' numbers, kept in each record.
      accepted: the identities that finished runs may have besides this one, see store.records; None: any.
      replan: make a new plan for the missing runs if theirs is for other devices, or for other lanes than those chosen.

    Returns:
      The Result, and the Work of each sweep: none where every run was finished.

    Raises:
      UserError: a record or the plan cannot be used, or the memory does not suffice.
    """
    works = []
    accepted = None if accepted is None else {*accepted, identity}
    options = _Options(directory, name, experiment, progress, together, lanes, identity, accepted, replan)

    def finish(phase, runs):
        works.extend(_train_missing(options, phase, runs))
        return store.read(directory, name, phase, runs, accepted)

    return judge(points, seeds, reruns, experiment.target, finish), works


class _Options(NamedTuple):
    """Arguments of `run`."""

    directory: Path
    name: str
    experiment: Experiment
    progress: Callable[[Live], None]
    together: bool | None
    lanes: int | None
    identity: str | None
    accepted: Collection[str | None] | None
    replan: bool


def _train_missing(options: _Options, phase: str, runs: Sequence[Run]) -> list[Work]:
    """Train the runs of a phase that are not finished, by their stored plan or by a new one."""
    directory, name, together = options.directory, options.name, options.together
    missing = store.missing(directory, name, phase, runs)
    if not missing:
        return []
    finished = [run for run in runs if run not in missing]
    # Read before the training, which may take hours: a record that cannot be used shows now.
    records = store.records(directory, name, phase, finished, options.accepted)
    plan, file, works = plans.read(directory, name), plans.path(directory, name), []
    store.meet("plan read")
    by_entry, unplanned = plans.unfinished(plan[phase], missing)
    for number, entry in enumerate(plan[phase]):
        chosen = planning.at_most(options.lanes, len(entry.runs))
        if by_entry[number] and options.replan and plans.differs(entry, together, chosen):
            unplanned, by_entry[number] = unplanned + by_entry[number], []
        elif by_entry[number]:
            plans.check_entry(file, entry, together, chosen)
    for entry, lost in zip(plan[phase], by_entry, strict=True):
        if lost:
            prepared = _prepare(options, entry.runs, entry.together, entry.lanes, stored=True)
            works.append(_train_entry(options, phase, prepared, entry, lost))
    if unplanned:
        orphans = [] if options.replan else plans.orphans(plan[phase], name, phase, finished, records)
        kept = [run for run, _ in orphans]
        wanted = [run for run in runs if run in unplanned or run in kept]
        wanted = [run for at, run in enumerate(wanted) if run not in wanted[:at]]
        prepared = _prepare(options, wanted, together, planning.at_most(options.lanes, len(wanted)))
        entry = plans.Entry(prepared.plan.together, prepared.plan.lanes, planning.mesh().size, tuple(wanted))
        plans.check_orphans(file, entry, name, phase, [digest for _, digest in orphans])
        plans.write(directory, name, {**plan, phase: [*plan[phase], entry]})
        works.append(_train_entry(options, phase, prepared, entry, unplanned))
    return works


def _prepare(options: _Options, runs: Sequence[Run], together, lanes, stored: bool = False) -> Prepared:
    return prepare(options.name, options.experiment, runs, together=together, lanes=lanes, stored=stored)


def _train_entry(options: _Options, phase: str, prepared: Prepared, entry: plans.Entry, missing: Sequence[Run]) -> Work:
    """Train the slices of an entry that have a missing run, and store each when it has ended."""
    slices, seconds = plans.slices(entry, missing), 0.0
    count = plans.length(entry, slices)
    report = follow(options.experiment.target, count, options.progress)
    for part in train(prepared, slices, test=phase == "final", report=report):
        store.write(options.directory, phase, part, identity=options.identity, entry=entry)
        seconds += float(part.seconds[:, -1].sum())
    return Work(len(missing), seconds, prepared.compile_seconds, prepared.plan)


class Unfinished(Exception):
    """So many runs of an optimizer are not there yet."""


def stored(
    directory: Path,
    name: str,
    points: Sequence[dict[str, float]],
    seeds: Sequence[int],
    reruns: int,
    target: Target | None,
    *,
    accepted: Collection[str | None] | None = None,
) -> Result:
    """The Result of finished runs alone, without training.

    Args:
      directory, name, points, seeds, reruns: as for `run`.
      target: the experiment's.
      accepted: the identities that the runs may have, see store.records; None: any.

    Raises:
      Unfinished: runs are missing; it tells how many.
      UserError: a record cannot be used.
    """

    def finish(phase, runs):
        if missing := store.missing(directory, name, phase, runs):
            raise Unfinished(f"{len(missing)} of {len(runs)} {phase} runs of {name} are not there yet")
        return store.read(directory, name, phase, runs, accepted)

    return judge(points, seeds, reruns, target, finish)


def outcome(name: str, results: list[Result], target: Target | None) -> Outcome:
    """The Outcome of a workload from the results of its optimizers."""
    return Outcome(name, results, *goal_of(target, results[0].tuned.curves))


def counting_compilation(result: Result) -> Result:
    """The same with each run's share of the compilation on its clock."""

    def counted(sweep: Sweep) -> Sweep:
        return sweep._replace(seconds=sweep.seconds + sweep.compile_seconds[:, None])

    return result._replace(tuned=counted(result.tuned), final=counted(result.final))
