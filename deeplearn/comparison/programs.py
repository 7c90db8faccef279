"""The pure functions that one run of a sweep consists of."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deeplearn import metrics
from deeplearn.experiment import Experiment
from deeplearn.training import evaluation, feed, step
from deeplearn.training.state import TrainState, begin


class Programs(NamedTuple):
    """The pure functions of one run, `(run, shared) -> result`, which `lanes.each` takes over all of them.

    Fields:
      start: `(seed, ()) -> (params, model_state, rng)`; the seed is uint32.
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

    accumulate, refresh = experiment.config.accumulate, min(evaluation.REFRESH, length)
    chunk_of = step.make_chunk(step.make_step(task, optimizer, accumulate=accumulate), batch_of)
    evaluated_of = evaluation.make_evaluated(task, optimizer, batch_of, refresh, accumulate)

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


def step_flops(experiment: Experiment, hyperparameters: Iterable[str]) -> float:
    """FLOPs of one training step of one run, by XLA's cost analysis of the program before compilation.

    The body of a loop counts once. Nothing is compiled.

    Args:
      experiment: see Experiment.
      hyperparameters: the names of those that the runs vary.
    """
    one = programs(experiment)

    def begin_one():
        return one.init(({name: jnp.float32(0) for name in hyperparameters}, *one.start(jnp.uint32(0), ())), ())

    train = experiment.data.train.arrays
    batch = {name: jax.ShapeDtypeStruct((experiment.batch_size, *x.shape[1:]), x.dtype) for name, x in train.items()}
    train_step = step.make_step(experiment.task, experiment.optimizer, accumulate=experiment.config.accumulate)
    cost = jax.jit(train_step).lower(jax.eval_shape(begin_one), batch).cost_analysis() or {}
    return float(cost.get("flops", 0.0))
