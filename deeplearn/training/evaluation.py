"""Evaluation: sums over a whole split, in one program."""

import jax
import jax.numpy as jnp

from deeplearn import metrics
from deeplearn.training.state import EVALUATE
from deeplearn.training.step import in_parts

REFRESH = 50  # training batches; with momentum 0.9 what is left of the old statistics is 0.9^50 = 0.5 %


def make_evaluate(task, batch_size: int, parts: int = 1, constrain=lambda batch: batch):
    """The pure function `(params, model_state, rng, arrays) -> {name: Mean}` over all rows, a batch at a time.

    The last batch is filled up with copies of the last row, and a `mask` of 0 that keeps them out of every sum.
    `parts`: the devices that a batch is divided over.
    """

    def evaluate(params, model_state, rng, arrays):
        size = jax.tree.leaves(arrays)[0].shape[0]
        rows = -(-min(batch_size, size) // parts) * parts
        rng = jax.random.fold_in(rng, EVALUATE)

        def one(i):
            index = i * rows + jnp.arange(rows)  # (B,)
            batch = {name: x[jnp.minimum(index, size - 1)] for name, x in arrays.items()}
            batch["mask"] = (index < size).astype(jnp.float32)
            return task.evaluate(params, model_state, constrain(batch), jax.random.fold_in(rng, i))

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, 0))
        return jax.lax.fori_loop(0, -(-size // rows), lambda i, total: metrics.add(total, one(i)), zeros)

    return evaluate


def needs_refresh(optimizer, state) -> bool:
    """Whether batch norm's statistics are those of other parameters than the optimizer's evaluation parameters."""
    same = []

    def trace(state):
        same.append(optimizer.evaluation_params(state.opt_state, state.params) is state.params)
        return 0

    jax.eval_shape(trace, state)
    return "batch_stats" in state.model_state and not same[0]


def make_evaluated(task, optimizer, batch_of, steps: int, accumulate: int):
    """The pure function `(state, data) -> (params, model_state)` that gives what is to be evaluated.

    Where `needs_refresh`, `data` is the feed's, and batch norm's statistics are taken anew, in a pass over the next
    `steps` training batches with the evaluation parameters held still; elsewhere `data` is None.

    A batch passes in the `accumulate` parts of a training step, in the memory of one, each normalised by its own
    moments, as in training. The parts of a batch start from the same statistics, and the new statistics are the mean
    over the parts: a batch is one step of the running average, towards the mean over its parts of their means (the
    mean of the batch) and of their variances (by which training divides). Other model state passes from part to part.

    Args:
      task: see Task.
      optimizer: see Optimizer.
      batch_of: `(state, data) -> (i -> batch)`, see `make_chunk`.
      steps: batches of the pass.
      accumulate: parts of a batch.

    Source: Izmailov et al. 2018, Averaging weights leads to wider optima, section 3.2.
    """

    def statistics_of(params, model_state, batch, rng):
        _, (new, _) = task.loss(params, model_state, batch, rng)
        return new["batch_stats"], {**new, "batch_stats": model_state["batch_stats"]}

    refreshed = in_parts(statistics_of, accumulate)

    def evaluated(state, data):
        params = optimizer.evaluation_params(state.opt_state, state.params)
        if data is None:
            return params, state.model_state
        batch = batch_of(state, data)
        rng = jax.random.fold_in(state.rng, EVALUATE)

        def body(i, model_state):
            statistics, rest = refreshed(params, model_state, batch(i), jax.random.fold_in(rng, i))
            old = model_state["batch_stats"]
            return {**rest, "batch_stats": jax.tree.map(lambda x, old: x.astype(old.dtype), statistics, old)}

        return params, jax.lax.fori_loop(0, steps, body, state.model_state)

    return evaluated
