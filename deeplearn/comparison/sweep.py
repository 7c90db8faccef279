"""All runs of one optimizer as one compiled program."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn import metrics
from deeplearn.comparison import lanes
from deeplearn.data import sources
from deeplearn.errors import UserError
from deeplearn.experiment import Experiment
from deeplearn.parallel import compiler, processes
from deeplearn.training import evaluation, feed, step
from deeplearn.training.state import TrainState, begin

TRIAL_SECONDS = 0.2


class Sweep(NamedTuple):
    """What came of it: R runs, evaluated E times each.

    Fields:
      optimizer: its name, with the hyperparameters that were set.
      points: the hyperparameters of each point, {name: value}.
      point, seeds: of each run, (R,); the first an index of `points`.
      steps, examples, epochs: until each evaluation, (E,).
      seconds: of each run and evaluation, (R, E): the run's share of its program's, which is the time of the chunks
        divided by the runs, compilation and evaluation left out.
      curves: {name: (R, E)}; `loss` is training's, the mean since the last evaluation, `validation/...` evaluation's.
      test: {name: (R,)}, the last state on the test split; empty where it was not asked for.
      compile_seconds: of each run, (R,): its share of what the program took, and the ones that were tried.
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


class Programs(NamedTuple):
    """The pure functions of one run, `(run, shared) -> result`, which `lanes.each` takes over all of them.

    Fields:
      start: `(seed, ()) -> (params, model_state, rng)`.
      init: `((hyperparameters, params, model_state, rng), ()) -> TrainState`.
      rows: `(rng, step) -> (length, B)`, the examples of the batches from `step` on.
      chunk: `((state, rows), (train, steps)) -> (state, metrics)`.
      evaluated: `((state, rows), train) -> (params, model_state)`; rows and train are None where nothing is refreshed.
      measure: `((params, model_state, rng), validation) -> {name: value}`.
    """

    start: Callable
    init: Callable
    rows: Callable
    chunk: Callable
    evaluated: Callable
    measure: Callable


def programs(experiment: Experiment) -> Programs:
    """The functions of an experiment's runs."""
    task, optimizer, size = experiment.task, experiment.optimizer, len(experiment.data.train)
    length, batch_size = experiment.eval_every, experiment.batch_size

    def batch_of(state, data):
        arrays, indices = data
        return lambda i: {name: x[indices[i]] for name, x in arrays.items()}

    chunk_of = step.make_chunk(step.make_step(task, optimizer, accumulate=experiment.config.accumulate), batch_of)
    evaluated_of = evaluation.make_evaluated(task, optimizer, batch_of, min(evaluation.REFRESH, length))

    def init(run, _):
        hyperparameters, params, model_state, rng = run
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params, hyperparameters), rng)

    def chunk(run, shared):
        (state, rows), (train, steps) = run, shared
        return chunk_of(state, (train, rows), steps)

    def evaluated(run, train):
        state, rows = run
        return evaluated_of(state, None if train is None else (train, rows))

    def measure(run, validation):
        values = metrics.result(evaluation.make_evaluate(task, experiment.config.eval_batch_size)(*run, validation))
        return {name: value for name, value in values.items() if value.ndim == 0}

    return Programs(
        start=lambda seed, _: begin(task, seed),
        init=init,
        rows=lambda rng, step: feed.indices(rng, step, batch_size, length, size),
        chunk=chunk,
        evaluated=evaluated,
        measure=measure,
    )


def sweep(
    name: str,
    experiment: Experiment,
    runs: Sequence[tuple[dict[str, float], int]],
    *,
    test: bool = False,
    report=lambda done, total, finished, values: None,
    together: bool | None = None,
) -> tuple[Sweep, lanes.Plan]:
    """Train every run.

    A run that diverges goes on beside the others as NaN, and costs them nothing.

    Args:
      name: the optimizer's, for people.
      experiment: all but the runs' hyperparameters and seeds.
      runs: hyperparameters and seed of each; the first are leaves of the optimizer's state, the same in every run.
      test: whether to evaluate the last states on the test split.
      report: called after each evaluation with the steps done, those of all groups of runs, how many runs have ended,
        and the values of those at work, {name: (L,)} as in `curves`.
      together: whether runs go side by side, see deeplearn.comparison.lanes; None: what is faster in a short trial.

    Returns:
      What came of it, and how the runs shared the devices.

    Raises:
      UserError: data that does not fit on the device.
    """
    if not isinstance(experiment.data.train, sources.Arrays):
        raise UserError(f"data set {experiment.data.name} does not fit on the device; compare needs one that does")
    devices = lanes.mesh()
    train, *evaluated_on = (
        lanes.shared(dict(experiment.data.split(split).arrays), devices) for split in ("train", "validation", "test")
    )
    points = list({tuple(point.items()): point for point, _ in runs}.values())
    point = np.array([points.index(chosen) for chosen, _ in runs])  # (R,)
    seeds = np.array([seed for _, seed in runs])
    values = {key: np.array([points[i][key] for i in point], np.float32) for key in points[0]}  # {name: (R,)}
    one = programs(experiment)

    def every(function, together=True):
        return jax.jit(lanes.each(function, devices, together), compiler_options=compiler.options())

    every_start, every_init, every_rows = every(one.start), every(one.init), every(one.rows)

    def begin_all(group):
        """The states of the runs of a group, leaves (L, ...)."""
        started = every_start(seeds[group].astype(np.int32), ())
        return every_init(({key: x[group] for key, x in values.items()}, *started), ())

    def compile(count, together):
        started = every_start.eval_shape(jax.ShapeDtypeStruct((count,), np.int32), ())
        chosen = {key: jax.ShapeDtypeStruct((count,), np.float32) for key in values}
        states = every_init.eval_shape((chosen, *started), ())
        rows = every_rows.eval_shape(states.rng, 0)
        chunks = lanes.each(one.chunk, devices, together)
        run = jax.jit(lambda states, rows, shared: chunks((states, rows), shared), donate_argnums=0)
        return run.lower(states, rows, (train, 1)).compile(compiler.options())

    def step_seconds(run, count):
        """What a step of all lanes takes: of more and more steps, until they take long enough to tell."""
        states = begin_all(np.resize(np.arange(len(point)), count))
        rows, steps, took = every_rows(states.rng, 0), 1, 0.0
        while True:
            started = time.perf_counter()
            states, _ = jax.block_until_ready(run(states, rows, (train, steps)))
            took = float(lanes.agreed(time.perf_counter() - started))
            if took > TRIAL_SECONDS or steps == experiment.eval_every:
                return took / steps
            steps = min(4 * steps, experiment.eval_every)

    started = time.perf_counter()
    plan, run = lanes.choose(compile, step_seconds, len(point), together)
    every_evaluated, every_measure = every(one.evaluated, plan.together), every(one.measure, plan.together)
    states = begin_all(np.resize(np.arange(len(point)), plan.lanes))
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
    refresh = evaluation.needs_refresh(experiment.optimizer, single)

    def measured(states, done, split):
        """The metrics of all lanes on a split of the evaluated ones, {name: (L,)}."""
        rows = every_rows(states.rng, done) if refresh else None
        evaluated = every_evaluated((states, rows), train if refresh else None)
        return every_measure((*evaluated, states.rng), evaluated_on[split])

    states, _ = run(states, every_rows(states.rng, 0), (train, 1))  # the first call of each program is slower
    jax.block_until_ready(measured(states, 1, 0))
    del states  # the forecast counts one copy of the lanes
    compile_seconds = time.perf_counter() - started
    groups = [np.arange(i, min(i + plan.lanes, len(point))) for i in range(0, len(point), plan.lanes)]

    def train_group(number, group):
        """Steps (E,), a run's seconds (E,), curves {name: (L, E)} and test {name: (L,)} of the group.

        What is missing to a whole group is trained twice.
        """
        states = begin_all(np.resize(group, plan.lanes))
        done, elapsed, lines = 0, 0.0, []
        while done < experiment.steps:
            steps = min(experiment.eval_every, experiment.steps - done)
            started = time.perf_counter()
            states, trained = jax.block_until_ready(run(states, every_rows(states.rng, done), (train, steps)))
            elapsed += time.perf_counter() - started
            done += steps
            found = {f"validation/{key}": x for key, x in measured(states, done, 0).items()}
            line = {key: x[: len(group)] for key, x in processes.fetch({**trained, **found}).items()}
            lines.append((done, elapsed, line))
            ended = groups[number][0] + (len(group) if done == experiment.steps else 0)
            report(number * experiment.steps + done, len(groups) * experiment.steps, int(ended), line)
        steps, seconds, curves = zip(*lines, strict=True)
        curves = {key: np.stack([line[key] for line in curves], axis=1) for key in curves[0]}
        found = processes.fetch(measured(states, done, 1)) if test else {}
        found = {key: x[: len(group)] for key, x in found.items()}
        return np.array(steps), np.tile(seconds, (len(group), 1)) / len(group), curves, found

    parts = [train_group(number, group) for number, group in enumerate(groups)]
    steps, seconds, curves, found = zip(*parts, strict=True)
    result = Sweep(
        optimizer=name,
        points=tuple(points),
        point=point,
        seeds=seeds,
        steps=steps[0],
        examples=steps[0] * experiment.batch_size,
        epochs=steps[0] * experiment.batch_size / len(experiment.data.train),
        seconds=np.concatenate(seconds),
        curves={key: np.concatenate([part[key] for part in curves]) for key in curves[0]},
        test={key: np.concatenate([part[key] for part in found]) for key in found[0]},
        compile_seconds=np.full(len(point), compile_seconds / len(point)),
    )
    return result, plan
