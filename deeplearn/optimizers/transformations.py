"""What goes around an optimizer: functions from Optax transformations to Optax transformations.

They pass on the extra arguments of `Optimizer.update`: value, grad, value_fn and grad_fn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs as Transformation

Roles = Callable[[Any], Any]  # params -> tree of Role
TINY = 1e-12


def where(condition, yes, no):
    """`yes` or `no`, leaf by leaf."""
    return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)


def precise(dtype) -> jnp.dtype:
    """The dtype in which an optimizer computes for parameters of this dtype: float32 at least.

    >>> precise(jnp.bfloat16), precise(jnp.float32)
    (dtype('float32'), dtype('float32'))
    """
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def widen(tree):
    """The floating-point arrays in float32 at least."""

    def one(x):
        x = jnp.asarray(x)
        return x.astype(precise(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def widest(params) -> jnp.dtype:
    """The dtype that holds every number of an optimizer for these parameters."""
    floats = [precise(x.dtype) for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    return max(floats, key=lambda dtype: dtype.itemsize, default=jnp.dtype("float32"))


def narrow(tree, like):
    """The arrays in the dtypes of those of `like`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def in_float32(optimizer) -> Transformation:
    """`optimizer` with its state and its arithmetic in float32 at least, whatever the parameters' dtype is.

    Squares of bfloat16 gradients lose all but two digits, and those of float16 ones are infinite from 256 on. Dtypes
    are promoted in the standard way: Optax raises float32 decay rates to the power of int32 counts.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return optimizer.init(widen(params))

    def update(grads, state, params, *, value=None, value_fn=None, grad_fn=None):
        extra = {
            "value": None if value is None else widen(value),
            "grad": widen(grads),
            "value_fn": lambda p: widen(value_fn(narrow(p, params))),
            "grad_fn": lambda p: widen(grad_fn(narrow(p, params))),
        }
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(widen(grads), state, widen(params), **extra)
        return narrow(updates, params), state

    return Transformation(init, update)


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


def decoupled_decay(optimizer, weight_decay, rate: Callable[[Any], Any], roles: Roles) -> Transformation:
    """Beside what `optimizer` does, every parameter w that decays loses rate(state) * weight_decay * w.

    Args:
      optimizer: a transformation.
      weight_decay: a number.
      rate: of the optimizer's state before the step.
      roles: `params -> tree of Role`.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(grads, state, params, **extra):
        lost = rate(state) * weight_decay
        updates, moved = optimizer.update(grads, state, params, **extra)
        decayed = jax.tree.map(lambda u, w, role: u - lost * w if role.decays else u, updates, params, roles(params))
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


def project_to_max_norm(max_norm, roles: Roles) -> optax.GradientTransformation:
    """The update after which each unit's incoming weights w, in a kernel, are w min(1, max_norm / |w|).

    Source: Srivastava et al. 2014, Dropout, section 5.1.
    """

    def project(update, kernel, role):
        if role.kind != "kernel":
            return update
        w = kernel + update
        norm = jnp.sqrt(jnp.sum(jnp.square(w), axis=role.inputs, keepdims=True))  # 1 along the inputs
        return w * jnp.minimum(1.0, max_norm / jnp.maximum(norm, TINY)) - kernel

    return optax.stateless(lambda updates, params: jax.tree.map(project, updates, params, roles(params)))


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
