"""All learning rates and seeds of one optimizer as one compiled program."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn import metrics, optimizers
from deeplearn.data import sources
from deeplearn.errors import UserError
from deeplearn.experiment import Experiment
from deeplearn.training import evaluation, feed, step
from deeplearn.training.state import TrainState, begin


class Sweep(NamedTuple):
    """What came of it: R runs, evaluated E times each.

    Fields:
      optimizer: its name, with the hyperparameters that were set.
      learning_rates, seeds: of each run, (R,).
      steps, epochs, seconds: of each evaluation, (E,). Seconds are a run's share of the program's: the time of a chunk
        divided by R, compilation and evaluation left out.
      curves: {name: (R, E)}; `loss` is training's, the mean since the last evaluation, `validation/...` evaluation's.
      compile_seconds: of the whole program.
    """

    optimizer: str
    learning_rates: np.ndarray
    seeds: np.ndarray
    steps: np.ndarray
    epochs: np.ndarray
    seconds: np.ndarray
    curves: dict[str, np.ndarray]
    compile_seconds: float

    @property
    def diverged(self) -> np.ndarray:
        """(R,): whether a loss of the run was ever not a finite number."""
        losses = [self.curves[name] for name in ("loss", "validation/loss")]
        return ~np.isfinite(np.stack(losses)).all(axis=(0, 2))


def sweep(name: str, experiment: Experiment, learning_rates, seeds, report=lambda done, total: None) -> Sweep:
    """Train every learning rate with every seed.

    A run that diverges goes on beside the others as NaN, and costs them nothing.
    """
    train = experiment.data.train
    if not isinstance(train, sources.Arrays):
        raise UserError(f"data set {experiment.data.name} does not fit on the device; compare needs one that does")
    rates, seeds = (np.ravel(x) for x in np.meshgrid(learning_rates, seeds, indexing="ij"))  # (R,)
    size = len(train)
    lanes, task, optimizer = len(rates), experiment.task, experiment.optimizer

    rows = partial(feed.indices, batch_size=experiment.batch_size, length=experiment.eval_every, size=size)
    train = jax.device_put(dict(train.arrays))
    validation = jax.device_put(dict(experiment.data.validation.arrays))

    def batch_of(state, data):
        arrays, indices = data
        return lambda i: {name: x[indices[i]] for name, x in arrays.items()}

    def init(rate, params, model_state, rng):
        return TrainState(jnp.int32(0), params, model_state, optimizer.init(params, {"learning_rate": rate}), rng)

    def measure(params, model_state, rng, arrays):
        values = metrics.result(evaluation.make_evaluate(task)(params, model_state, rng, arrays))
        return {name: value for name, value in values.items() if value.ndim == 0}

    chunk = step.make_chunk(step.make_step(task, optimizer, accumulate=experiment.config.accumulate), batch_of)
    evaluated = evaluation.make_evaluated(task, optimizer, batch_of, min(evaluation.REFRESH, experiment.eval_every))
    # What does not depend on the optimizer is a program of its own: compiled for the first, it serves the others.
    data_axes = (None, 0)
    each_start = jax.jit(jax.vmap(partial(begin, task)))
    each_rows = jax.jit(jax.vmap(rows, in_axes=(0, None)))
    each_measure = jax.jit(jax.vmap(measure, in_axes=(0, 0, 0, None)))
    each_chunk = jax.jit(jax.vmap(chunk, in_axes=(0, data_axes, None)), donate_argnums=0)

    started = time.perf_counter()
    states = jax.vmap(init)(jnp.asarray(rates, jnp.float32), *each_start(jnp.asarray(seeds, jnp.int32)))
    refresh = evaluation.needs_refresh(optimizer, jax.tree.map(lambda x: x[0], states))
    each_evaluated = jax.jit(jax.vmap(evaluated, in_axes=(0, data_axes if refresh else None)))
    indices = each_rows(states.rng, 0)
    run = each_chunk.lower(states, (train, indices), 1).compile()
    compile_seconds = time.perf_counter() - started

    done, elapsed, lines = 0, 0.0, []
    while done < experiment.steps:
        steps = min(experiment.eval_every, experiment.steps - done)
        started = time.perf_counter()
        data = (train, each_rows(states.rng, done))
        states, trained = jax.block_until_ready(run(states, data, steps))
        elapsed += time.perf_counter() - started
        done += steps
        params, model_state = each_evaluated(states, (train, each_rows(states.rng, done)) if refresh else None)
        found = {f"validation/{key}": x for key, x in each_measure(params, model_state, states.rng, validation).items()}
        lines.append((done, elapsed / lanes, jax.device_get({**trained, **found})))
        report(done, experiment.steps)
    steps, seconds, values = zip(*lines, strict=True)
    return Sweep(
        optimizer=name,
        learning_rates=rates,
        seeds=seeds,
        steps=np.array(steps),
        epochs=np.array(steps) * experiment.batch_size / size,
        seconds=np.array(seconds),
        curves={name: np.stack([row[name] for row in values], axis=1) for name in values[0]},
        compile_seconds=compile_seconds,
    )


def learning_rates(name: str, number: int) -> np.ndarray:
    """`number` learning rates, evenly apart in log, over the optimizer's search space."""
    entry = optimizers.OPTIMIZERS[optimizers.parse(name)[0]]
    space: Any = entry.space.get("learning_rate", optimizers.Range(entry.learning_rate / 30, entry.learning_rate * 30))
    return np.array([space.at(u) for u in np.linspace(0, 1, number)] if number > 1 else [entry.learning_rate])
