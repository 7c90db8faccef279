"""All runs of one optimizer as one compiled program."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from deeplearn.comparison import lanes as planning
from deeplearn.comparison.programs import programs, step_flops
from deeplearn.data import sources
from deeplearn.errors import UserError
from deeplearn.experiment import Experiment
from deeplearn.parallel import compiler, processes
from deeplearn.parallel import mesh as meshes
from deeplearn.training import evaluation, step


class Sweep(NamedTuple):
    """The results of R runs, evaluated E times each.

    Fields:
      optimizer: its name, with the hyperparameters that were set.
      points: the hyperparameters of each point, {name: value}.
      point, seeds: of each run, (R,); the first an index of `points`.
      steps, examples, epochs: until each evaluation, (E,).
      seconds: of each run and evaluation, (R, E): the run's share of its program's time, which is the time of the
        chunks divided by the runs, without compilation and evaluation.
      curves: {name: (R, E)}; `loss` is training's, the mean since the last evaluation, `validation/...` evaluation's.
      test: {name: (R,)}, the last state on the test split; empty where it was not asked for.
      compile_seconds: of each run, (R,): its share of the time that the programs took to compile.
    """

    optimizer: str
    points: tuple[dict[str, float], ...]
    point: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    examples: np.ndarray
    epochs: np.ndarray
    seconds: np.ndarray
    curves: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    compile_seconds: np.ndarray

    @property
    def diverged(self) -> np.ndarray:
        """(R,): whether a loss of the run was ever not a finite number."""
        losses = [self.curves[name] for name in ("loss", "validation/loss")]
        return ~np.isfinite(np.stack(losses)).all(axis=(0, 2))


class Prepared(NamedTuple):
    """A sweep before its training: the runs, their plan and the compiled programs.

    Runs train in slices: consecutive `plan.lanes` runs, the last slice filled up by repeating its runs.

    Fields:
      name: the optimizer's.
      experiment: see Experiment.
      points, point, seeds: as in Sweep.
      plan: see deeplearn.comparison.lanes.Plan.
      begin: `indices of runs (L,) -> states`, leaves (L, ...).
      chunk: `(states, steps done, steps) -> (states, metrics)`, of no more steps than `eval_every`.
      measured: `(states, steps done, split) -> {name: (L,)}`; the split 0 is validation, 1 test.
      compile_seconds: the time that the programs took to compile.
    """

    name: str
    experiment: Experiment
    points: tuple[dict[str, float], ...]
    point: np.ndarray
    seeds: np.ndarray
    plan: planning.Plan
    begin: Callable[[np.ndarray], Any]
    chunk: Callable[[Any, int, int], Any]
    measured: Callable[[Any, int, int], Any]
    compile_seconds: float


def distinct(runs: Sequence[tuple[dict[str, float], int]]) -> tuple[tuple[dict[str, float], ...], np.ndarray]:
    """The points of the runs, each once, and the index of each run's point, (R,).

    >>> distinct([({"a": 1.0}, 0), ({"a": 2.0}, 0), ({"a": 1.0}, 1)])
    (({'a': 1.0}, {'a': 2.0}), array([0, 1, 0]))
    """
    points = list({tuple(point.items()): point for point, _ in runs}.values())
    return tuple(points), np.array([points.index(point) for point, _ in runs])


def prepare(
    name: str,
    experiment: Experiment,
    runs: Sequence[tuple[dict[str, float], int]],
    *,
    together: bool | None = None,
    lanes: int | None = None,
    stored: bool = False,
) -> Prepared:
    """Choose the plan of a sweep and compile its programs.

    The plan follows from the program, the number of runs and the machine alone, so that two studies on one machine get
    the same bits; see deeplearn.comparison.lanes.

    Args:
      name: the optimizer's, for people.
      experiment: everything but the runs' hyperparameters and seeds.
      runs: hyperparameters and seed of each; the first are leaves of the optimizer's state, the same in every run.
      together: whether runs go side by side or one after another; None: by rule.
      lanes: runs in one program, rounded up to a multiple of the number of devices; None: by rule.
      stored: whether together and lanes come from the stored plan of a study; changes an error's text alone.

    Raises:
      UserError: the data does not fit on the device, less memory is free than the program needs, or a setting of JAX
        does not allow a sweep.
    """
    if jax.config.jax_disable_jit:
        raise UserError("compare trains in compiled programs, which jax_disable_jit forbids; unset it, or use train")
    if jax.config.jax_default_prng_impl != "threefry2x32":  # in a vmap, others draw for all by the first run's key
        name = jax.config.jax_default_prng_impl
        raise UserError(f"by jax_default_prng_impl={name} a run depends on those beside it; compare needs threefry2x32")
    if not isinstance(experiment.data.train, sources.Arrays):
        raise UserError(f"data set {experiment.data.name} does not fit on the device; compare needs one that does")
    lanes = None if lanes is None else planning.multiple(lanes)
    devices, free = planning.mesh(), planning.free()  # free before the data is there: the forecast counts the data
    train, *evaluated_on = (
        planning.shared(dict(experiment.data.split(split).arrays), devices) for split in ("train", "validation", "test")
    )
    points, point = distinct(runs)
    seeds = np.array([seed for _, seed in runs])
    values = {key: np.array([points[i][key] for i in point], np.float32) for key in points[0]}  # {name: (R,)}
    one = programs(experiment)

    def every(function, together=True):
        return jax.jit(planning.each(function, devices, together), compiler_options=compiler.options())

    every_start, every_init, every_rows = every(one.start), every(one.init), every(one.rows)

    def here(x):
        return meshes.whole(x, devices)

    def begin(group):
        chosen = {key: here(x[group]) for key, x in values.items()}
        return every_init((chosen, *every_start(here(seeds[group].astype(np.uint32)), ())), ())

    def compile(count):
        started = every_start.eval_shape(jax.ShapeDtypeStruct((count,), np.uint32), ())
        chosen = {key: jax.ShapeDtypeStruct((count,), np.float32) for key in values}
        states = every_init.eval_shape((chosen, *started), ())
        rows = every_rows.eval_shape(states.rng, one_step)
        chunks = planning.each(one.chunk, devices, together)
        run = jax.jit(lambda states, rows, shared: chunks((states, rows), shared), donate_argnums=0)
        return run.lower(states, rows, (train, one_step)).compile(compiler.options())

    one_step = here(np.int32(1))
    started = time.perf_counter()
    if together is None:
        together = planning.side_by_side(step_flops(experiment, values))
    lanes, needed, run = planning.choose(compile, len(runs), lanes)
    plan = planning.Plan(lanes, together, needed)
    planning.check_free(plan, free, stored)
    every_evaluated, every_measure = every(one.evaluated, together), every(one.measure, together)
    states = begin(np.resize(np.arange(len(runs)), lanes))
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
    refresh = evaluation.needs_refresh(experiment.optimizer, single)

    def chunk(states, done, steps):
        step.check_length(steps, experiment.eval_every)
        return run(states, every_rows(states.rng, here(np.int32(done))), (train, here(np.int32(steps))))

    def measured(states, done, split):
        rows = every_rows(states.rng, here(np.int32(done))) if refresh else None
        evaluated = every_evaluated((states, rows), train if refresh else None)
        return every_measure((*evaluated, states.rng), evaluated_on[split])

    states, _ = chunk(states, 0, 1)  # the first call of each program is slower
    jax.block_until_ready(measured(states, 1, 0))
    compile_seconds = time.perf_counter() - started
    return Prepared(name, experiment, points, point, seeds, plan, begin, chunk, measured, compile_seconds)


def train(
    prepared: Prepared,
    slices: Sequence[int] | None = None,
    *,
    test: bool = False,
    report=lambda done, total, finished, values: None,
) -> Iterator[Sweep]:
    """Train the runs slice by slice, and yield the results of each slice when its runs have ended.

    A run that diverges goes on beside the others as NaN, and does not change them.

    Args:
      prepared: see `prepare`.
      slices: the numbers of the slices to train; None: all.
      test: whether to evaluate the last states on the test split.
      report: called after each evaluation with the steps done, the steps of all these slices, how many of their runs
        have ended, and the values of those in training, {name: (L,)} as in `curves`.
    """
    lanes, runs = prepared.plan.lanes, len(prepared.point)
    groups = [np.arange(at, min(at + lanes, runs)) for at in range(0, runs, lanes)]
    groups = groups if slices is None else [groups[number] for number in slices]
    share, steps, ended = prepared.compile_seconds / sum(map(len, groups)), prepared.experiment.steps, 0
    for number, group in enumerate(groups):

        def tell(done, line, number=number, group=group, before=ended):
            report(number * steps + done, len(groups) * steps, before + (len(group) if done == steps else 0), line)

        part = _train_slice(prepared, group, test, tell)
        ended += len(group)
        yield part._replace(compile_seconds=np.full(len(group), share))


def _train_slice(prepared: Prepared, group: np.ndarray, test: bool, tell) -> Sweep:
    """The results of the runs of these indices, (G,), G <= lanes; `tell(done, values)` after each evaluation."""
    experiment, count = prepared.experiment, len(group)
    states = prepared.begin(np.resize(group, prepared.plan.lanes))
    done, elapsed, lines = 0, 0.0, []
    while done < experiment.steps:
        steps = min(experiment.eval_every, experiment.steps - done)
        started = time.perf_counter()
        states, trained = jax.block_until_ready(prepared.chunk(states, done, steps))
        elapsed += time.perf_counter() - started
        done += steps
        validation = {f"validation/{key}": x for key, x in prepared.measured(states, done, 0).items()}
        line = {key: x[:count] for key, x in processes.fetch({**trained, **validation}).items()}
        lines.append((done, elapsed, line))
        tell(done, line)
    steps, seconds, curves = zip(*lines, strict=True)
    tested = processes.fetch(prepared.measured(states, done, 1)) if test else {}
    steps = np.array(steps)
    return Sweep(
        optimizer=prepared.name,
        points=prepared.points,
        point=prepared.point[group],
        seeds=prepared.seeds[group],
        steps=steps,
        examples=steps * experiment.batch_size,
        epochs=steps * experiment.batch_size / len(experiment.data.train),
        seconds=np.tile(seconds, (count, 1)) / count,
        curves={key: np.stack([line[key] for line in curves], axis=1) for key in curves[0]},
        test={key: x[:count] for key, x in tested.items()},
        compile_seconds=np.zeros(count),
    )


def combine(parts: Sequence[Sweep]) -> Sweep:
    """The runs of several slices of one sweep as one."""

    def joined(field):
        return np.concatenate([getattr(part, field) for part in parts])

    def joined_by_name(field):
        first = getattr(parts[0], field)
        return {key: np.concatenate([getattr(part, field)[key] for part in parts]) for key in first}

    return parts[0]._replace(
        **{field: joined(field) for field in ("point", "seeds", "seconds", "compile_seconds")},
        **{field: joined_by_name(field) for field in ("curves", "test")},
    )


def sweep(
    name: str,
    experiment: Experiment,
    runs: Sequence[tuple[dict[str, float], int]],
    *,
    test: bool = False,
    report=lambda done, total, finished, values: None,
    together: bool | None = None,
    lanes: int | None = None,
) -> tuple[Sweep, planning.Plan]:
    """Train every run: the results, and how the runs shared the devices.

    Args:
      name: of the optimizer, with its arguments.
      experiment: what each run trains.
      runs: hyperparameters and seed each.
      test: evaluate on the test split at the end, too.
      report: called at each evaluation, see `train`.
      together, lanes: see `prepare`.
    """
    prepared = prepare(name, experiment, runs, together=together, lanes=lanes)
    return combine(list(train(prepared, test=test, report=report))), prepared.plan
