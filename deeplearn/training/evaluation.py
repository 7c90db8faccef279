"""Evaluation: sums over a whole split, in one program."""

import jax
import jax.numpy as jnp

from deeplearn import metrics
from deeplearn.training.state import EVALUATE

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


def make_evaluated(task, optimizer, batch_of, steps: int):
    """The pure function `(state, data) -> (params, model_state)` that gives what is to be evaluated.

    Where `needs_refresh`, `data` is the feed's, and batch norm's statistics are taken anew, in a pass over the next
    `steps` training batches with the evaluation parameters held still; elsewhere `data` is None.
    Source: Izmailov et al. 2018, Averaging weights leads to wider optima, section 3.2.
    """

    def evaluated(state, data):
        params = optimizer.evaluation_params(state.opt_state, state.params)
        if data is None:
            return params, state.model_state
        batch = batch_of(state, data)
        rng = jax.random.fold_in(state.rng, EVALUATE)

        def body(i, model_state):
            return task.loss(params, model_state, batch(i), jax.random.fold_in(rng, i))[1][0]

        return params, jax.lax.fori_loop(0, steps, body, state.model_state)

    return evaluated
