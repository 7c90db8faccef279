"""All learning rates and seeds of one optimizer as one compiled program."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn import metrics, optimizers
from deeplearn.data import sources
from deeplearn.errors import UserError
from deeplearn.experiment import Experiment
from deeplearn.training import evaluation, step
from deeplearn.training.state import create


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
    lanes, task, optimizer = len(rates), experiment.task, experiment.optimizer

    def init(seed, rate):
        state = create(task, optimizer, seed)
        return state._replace(opt_state=optimizer.init(state.params, {"learning_rate": rate}))

    def evaluate(state, arrays):
        params = optimizer.evaluation_params(state.opt_state, state.params)
        means = evaluation.make_evaluate(task, min(500, len(experiment.data.validation)))(
            params, state.model_state, state.rng, arrays
        )
        return {name: value for name, value in metrics.result(means).items() if value.ndim == 0}

    train_step = step.make_step(task, optimizer, accumulate=experiment.config.accumulate)
    chunk = step.make_chunk(train_step, step.resident(experiment.batch_size, experiment.eval_every))
    arrays = jax.device_put(dict(train.arrays))
    validation = jax.device_put(dict(experiment.data.validation.arrays))

    start = time.perf_counter()
    state = jax.jit(jax.vmap(init))(jnp.asarray(seeds, jnp.int32), jnp.asarray(rates, jnp.float32))
    run = jax.jit(jax.vmap(chunk, in_axes=(0, None, None)), donate_argnums=0).lower(state, arrays, 1).compile()
    measure = jax.jit(jax.vmap(evaluate, in_axes=(0, None))).lower(state, validation).compile()
    compile_seconds = time.perf_counter() - start

    done, elapsed, rows = 0, 0.0, []
    while done < experiment.steps:
        steps = min(experiment.eval_every, experiment.steps - done)
        start = time.perf_counter()
        state, trained = jax.block_until_ready(run(state, arrays, steps))
        elapsed += time.perf_counter() - start
        done += steps
        found = {f"validation/{name}": value for name, value in measure(state, validation).items()}
        rows.append((done, elapsed / lanes, jax.device_get({**trained, **found})))
        report(done, experiment.steps)
    steps, seconds, values = zip(*rows, strict=True)
    return Sweep(
        optimizer=name,
        learning_rates=rates,
        seeds=seeds,
        steps=np.array(steps),
        epochs=np.array(steps) * experiment.batch_size / len(train),
        seconds=np.array(seconds),
        curves={name: np.stack([row[name] for row in values], axis=1) for name in values[0]},
        compile_seconds=compile_seconds,
    )


def learning_rates(name: str, number: int) -> np.ndarray:
    """`number` learning rates, evenly apart in log, over the optimizer's search space."""
    entry = optimizers.OPTIMIZERS[optimizers.parse(name)[0]]
    space: Any = entry.space.get("learning_rate", optimizers.Range(entry.learning_rate / 30, entry.learning_rate * 30))
    return np.array([space.at(u) for u in np.linspace(0, 1, number)] if number > 1 else [entry.learning_rate])
