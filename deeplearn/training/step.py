"""One step of training, and many of them in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deeplearn.errors import UserError
from deeplearn.metrics import Mean, divided, divisor
from deeplearn.parallel import mesh as meshes
from deeplearn.training.state import STEP, TrainState


def in_parts(function, parts: int):
    """`function` over a batch as its mean over `parts` smaller batches, one after another, in the memory of one.

    function: `(params, model_state, batch, rng) -> (values, model_state)`; values are averaged, the model state
    passes from part to part.
    """
    if parts == 1:
        return function

    def mean(params, model_state, batch, rng):
        # Each part has rows of every device's, on a mesh that divides the batch: (B / parts, parts, ...).
        rows = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), batch)

        def add(i, carry):
            total, model_state = carry
            part = jax.tree.map(lambda x: x[:, i], rows)
            values, model_state = function(params, model_state, part, jax.random.fold_in(rng, i))
            return jax.tree.map(jnp.add, total, values), model_state

        first = jax.tree.map(lambda x: x[:, 0], rows)
        values, model_state = function(params, model_state, first, jax.random.fold_in(rng, 0))
        total, model_state = jax.lax.fori_loop(1, parts, add, (values, model_state))
        return jax.tree.map(lambda x: x / parts, total), model_state

    return mean


def make_step(task, optimizer, *, accumulate: int = 1):
    """The pure function `(state, batch) -> (state, metrics)` that one step is.

    metrics: the task's, with `loss` (at the parameters before the step) and `gradient_norm`. A loss or metric that is a
    Mean is that of the batch, however it is divided into parts: totals and counts are added before they are divided.
    """

    def total(params, model_state, batch, rng):
        loss, (model_state, metrics) = task.loss(params, model_state, batch, rng)
        return loss.total if isinstance(loss, Mean) else loss, (loss, metrics, model_state)

    def loss_of(params, model_state, batch, rng):
        _, (loss, _, model_state) = total(params, model_state, batch, rng)
        return loss, model_state

    def loss_and_gradient_of(params, model_state, batch, rng):
        differentiate = jax.value_and_grad(total, has_aux=True)
        (_, (loss, metrics, model_state)), gradient = differentiate(params, model_state, batch, rng)
        return (loss, metrics, gradient), model_state

    def value(*args):
        return divided(in_parts(loss_of, accumulate)(*args)[0])

    def value_and_gradient(*args):
        (loss, metrics, gradient), model_state = in_parts(loss_and_gradient_of, accumulate)(*args)
        if isinstance(loss, Mean):
            count = divisor(loss)
            gradient = jax.tree.map(lambda x: x / count.astype(x.dtype), gradient)
        metrics = {name: divided(x) for name, x in metrics.items()}
        return (divided(loss), metrics, gradient), model_state

    def step(state: TrainState, batch):
        rng = jax.random.fold_in(jax.random.fold_in(state.rng, STEP), state.step)
        args = (state.model_state, batch, rng)
        (loss, metrics, gradient), model_state = value_and_gradient(state.params, *args)
        updates, opt_state = optimizer.update(
            gradient,
            state.opt_state,
            state.params,
            value=loss,
            value_fn=lambda params: value(params, *args),
            grad_fn=lambda params: value_and_gradient(params, *args)[0][2],
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, model_state, opt_state, state.rng), metrics

    return step


def make_chunk(step, batch_of):
    """The pure function `(state, data, steps) -> (state, metrics)` that runs `steps` steps in one program.

    batch_of: `(state, data) -> (i -> batch)`, the batches from the state's step on. Metrics are means over the steps.
    The number of steps is an argument and not a constant: one compiled program serves every length, and a run that was
    interrupted executes the very instructions of one that was not.
    """

    def chunk(state, data, steps):
        batch = batch_of(state, data)

        def body(i, carry):
            state, total = carry
            state, metrics = step(state, batch(i))
            return state, jax.tree.map(jnp.add, total, metrics)

        shapes = jax.eval_shape(lambda state: step(state, batch(0))[1], state)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        state, total = jax.lax.fori_loop(0, steps, body, (state, zeros))
        return state, jax.tree.map(lambda x: x / jnp.float32(steps), total)

    return chunk


def bounded(chunk, length, mesh):
    """A compiled `(state, data, steps) -> ...` on a mesh, which refuses more steps than `data` has, `length(data)`.

    JAX would take the last batch again for each of them.
    """

    @functools.wraps(chunk)
    def checked(state, data, steps):
        check_length(int(steps), length(data))
        return chunk(state, data, meshes.whole(np.int32(steps), mesh))

    checked.lower = chunk.lower
    return checked


def check_length(steps: int, most: int) -> None:
    """Raise UserError for a chunk of fewer than one step, or of more than it has batches for."""
    if not 1 <= steps <= most:
        raise UserError(f"a chunk has from 1 to {most} steps here, not {steps}: call it again for the others")
