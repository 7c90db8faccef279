"""What goes around an optimizer: functions from Optax transformations to Optax transformations.

They pass on the extra arguments of `Optimizer.update`: value, grad, value_fn and grad_fn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs as Transformation

TINY = 1e-12


def where(condition, yes, no):
    """`yes` or `no`, leaf by leaf."""
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)


def weights(params, names: tuple[str, ...] = ("kernel", "embedding", "token_embedding", "position_embedding")):
    """A tree of booleans: True for arrays of two or more axes with one of the names: no bias, no scale.

    >>> weights({"Dense_0": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}})
    {'Dense_0': {'bias': False, 'kernel': True}}
    """

    def is_weight(path, x):
        return x.ndim >= 2 and jax.tree_util.keystr(path[-1:], simple=True) in names

    return jax.tree_util.tree_map_with_path(is_weight, params)


def inputs(path, kernel) -> tuple[int, ...]:
    """The axes of a unit's inputs: all but the last, and in an array of all `layers` of a model but the first.

    >>> jax.tree_util.tree_map_with_path(inputs, {"layers": {"up": jnp.zeros((4, 2, 3))}, "head": jnp.zeros((2, 3))})
    {'head': (0,), 'layers': {'up': (1,)}}
    """
    stacked = "layers" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    return tuple(range(stacked, kernel.ndim - 1))


def promote(optimizer) -> Transformation:
    """`optimizer` where dtypes are strict: Optax raises float32 decay rates to the power of int32 counts."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(grads, state, params, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(grads, state, params, **extra)

    return Transformation(optimizer.init, update)


def from_first_gradient(optimizer, learning_rate) -> Transformation:
    """`optimizer`, asleep while rate times gradient is 0: to estimate a distance it divides by their sum."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return jnp.bool(False), optimizer.init(params)

    def update(grads, state, params, **extra):
        awake, inner = state
        awake |= learning_rate * optax.tree.norm(grads) > 0
        updates, moved = optimizer.update(grads, inner, params, **extra)
        return where(awake, updates, optax.tree.zeros_like(updates)), (awake, where(awake, moved, inner))

    return Transformation(init, update)


def decoupled_decay(optimizer, weight_decay, rate: Callable[[Any], Any]) -> Transformation:
    """Beside what `optimizer` does, every weight w loses rate(state) * weight_decay * w.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(grads, state, params, **extra):
        updates, moved = optimizer.update(grads, state, params, **extra)
        lost = rate(state) * weight_decay
        decayed = jax.tree.map(lambda u, w, yes: u - lost * w if yes else u, updates, params, weights(params))
        return decayed, moved

    return Transformation(optimizer.init, update)


def clip_gradients(optimizer, clip_norm) -> Transformation:
    """`optimizer` on gradients g min(1, clip_norm / |g|), those that it asks of grad_fn included.

    Source: Pascanu, Mikolov and Bengio 2013, algorithm 1.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    clip = optax.clip_by_global_norm(clip_norm)

    def clipped(grads):
        return clip.update(grads, optax.EmptyState())[0]

    def update(grads, state, params, *, grad_fn=None, **extra):
        return optimizer.update(clipped(grads), state, params, grad_fn=lambda p: clipped(grad_fn(p)), **extra)

    return Transformation(optimizer.init, update)


def project_to_max_norm(max_norm) -> optax.GradientTransformation:
    """The update after which each unit's incoming weights w, a kernel's column, are w min(1, max_norm / |w|).

    Source: Srivastava et al. 2014, Dropout, section 5.1.
    """

    def project(path, update, kernel, is_kernel):
        if not is_kernel:
            return update
        w = kernel + update
        norm = jnp.sqrt(jnp.sum(jnp.square(w), axis=inputs(path, w), keepdims=True))  # (1, ..., 1, units)
        return w * jnp.minimum(1.0, max_norm / jnp.maximum(norm, TINY)) - kernel

    def update(updates, params):
        return jax.tree_util.tree_map_with_path(project, updates, params, weights(params, ("kernel",)))

    return optax.stateless(update)


class AverageState(NamedTuple):
    weight: jax.Array  # the sum of the average's weights, 1 - decay^t
    average: Any
    inner: Any


def average(optimizer, decay, evaluation_params: Callable[[Any, Any], Any]) -> Transformation:
    """Beside `optimizer`, a moving average of the parameters x that it would evaluate.

    a <- decay a + (1 - decay) x from a = 0; `averaged` returns a / (1 - decay^t).
    Source: Polyak and Juditsky 1992; the correction is Kingma and Ba 2015's, section 3.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return AverageState(jnp.float32(0), optax.tree.zeros_like(params), optimizer.init(params))

    def update(grads, state, params, **extra):
        updates, inner = optimizer.update(grads, state.inner, params, **extra)
        x = evaluation_params(inner, optax.apply_updates(params, updates))
        a = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, state.average, x)
        return updates, AverageState(decay * state.weight + (1 - decay), a, inner)

    return Transformation(init, update)


def averaged(state: AverageState, params):
    """The average without its bias to zero; before the first step, the parameters."""
    started = state.weight > 0
    weight = jnp.where(started, state.weight, 1.0)
    return where(started, jax.tree.map(lambda a: a / weight, state.average), params)
