"""Optimizers that Optax lacks, or has in another form than their papers or than a sweep can vary.

Each is `(learning_rate, **hyperparameters) -> optax.GradientTransformation`; those with a parameter `roles` get a
function from the parameters to their roles.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs as Transformation
from optax import contrib

from deeplearn.optimizers.layers import decaying
from deeplearn.optimizers.transformations import TINY, Roles, decoupled_decay, from_first_gradient, where


class RpropState(NamedTuple):
    sizes: Any
    grads: Any


def rprop(learning_rate, shrink, grow, smallest, largest):
    """Resilient propagation: steps by the gradient's signs, each parameter with a step size of its own.

    A size grows while its gradient keeps its sign; when the sign changes, it shrinks and the parameter rests.
    Optax's `rprop` lags by a step and reads the rate in `init` alone; here sizes are relative to the rate.
    Source: Riedmiller and Braun 1993; Igel and Huesken 2000, iRprop-.
    """

    def init(params):
        return RpropState(optax.tree.ones_like(params), optax.tree.zeros_like(params))

    def resize(size, turn):
        factor = jnp.where(turn > 0, grow, jnp.where(turn < 0, shrink, 1.0))
        return jnp.clip(size * factor, smallest, largest)

    def update(grads, state, params=None):
        turns = jax.tree.map(lambda g, before: jnp.sign(g) * jnp.sign(before), grads, state.grads)
        sizes = jax.tree.map(resize, state.sizes, turns)
        grads = jax.tree.map(lambda g, turn: jnp.where(turn < 0, 0.0, g), grads, turns)
        updates = jax.tree.map(lambda g, size: -learning_rate * size * jnp.sign(g), grads, sizes)
        return updates, RpropState(sizes, grads)

    return optax.GradientTransformation(init, update)


def sam(learning_rate, rho, momentum):
    """Sharpness-aware minimisation: momentum SGD with the gradient at w + rho g / |g|.

    Source: Foret et al. 2021, algorithm 1.
    """
    sgd = optax.sgd(learning_rate, momentum)

    def update(grads, state, params, *, grad_fn, **_):
        scale = rho / jnp.maximum(optax.tree.norm(grads), TINY)
        worst = jax.tree.map(lambda p, g: p + scale * g, params, grads)
        return sgd.update(grad_fn(worst), state, params)

    return Transformation(sgd.init, update)


class LookaheadState(NamedTuple):
    count: jax.Array
    slow: Any
    fast: Any


def lookahead(learning_rate, momentum, sync_period: int, slow_step_size):
    """Momentum SGD; every `sync_period` steps, slow <- slow + slow_step_size (fast - slow) and fast <- slow.

    Optax's `lookahead` wants pairs of parameters; the slow ones here are in the state.
    Source: Zhang et al. 2019, algorithm 1.
    """
    sgd = optax.sgd(learning_rate, momentum)

    def init(params):
        return LookaheadState(jnp.int32(0), params, sgd.init(params))

    def update(grads, state, params):
        updates, sgd_state = sgd.update(grads, state.fast, params)
        count = state.count + 1
        synchronize = count % sync_period == 0
        fast = optax.apply_updates(params, updates)
        pulled = jax.tree.map(lambda s, f: s + slow_step_size * (f - s), state.slow, fast)
        slow = where(synchronize, pulled, state.slow)
        fast = where(synchronize, pulled, fast)
        return jax.tree.map(jnp.subtract, fast, params), LookaheadState(count, slow, sgd_state)

    return optax.GradientTransformation(init, update)


def schedule_free(optimizer, learning_rate, b1, weight_lr_power):
    """`optax.contrib.schedule_free`, whose evaluation follows when b1 is set in the middle of a run."""
    inner = contrib.schedule_free(optimizer, learning_rate, b1, weight_lr_power)

    def update(grads, state, params, **extra):
        updates, state = inner.update(grads, state, params, **extra)
        return updates, state._replace(b1=b1)

    return Transformation(inner.init, update)


def schedule_free_sgd(learning_rate, roles: Roles, b1, weight_decay, weight_lr_power):
    sgd = decoupled_decay(optax.sgd(learning_rate), weight_decay, lambda state: learning_rate, roles)
    return schedule_free(sgd, learning_rate, b1, weight_lr_power)


def schedule_free_adamw(learning_rate, roles: Roles, b1, b2, eps, weight_decay, weight_lr_power):
    # Adam with b1 = 0: the averaging takes the place of the momentum.
    direction = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    adam = optax.chain(direction, optax.scale_by_learning_rate(learning_rate))
    adamw = decoupled_decay(adam, weight_decay, lambda state: learning_rate, roles)
    return schedule_free(adamw, learning_rate, b1, weight_lr_power)


def lbfgs(learning_rate, memory_size: int):
    inner = optax.lbfgs(learning_rate, memory_size)

    def update(grads, state, params, *, value, grad, value_fn, **_):
        return inner.update(grads, state, params, value=value, grad=grad, value_fn=value_fn)

    return Transformation(inner.init, update)


def prodigy(learning_rate, roles: Roles, b1, b2, eps, d0, d_coef, weight_decay):
    inner = contrib.prodigy(learning_rate, (b1, b2), None, eps, d0, d_coef)
    decayed = decoupled_decay(inner, weight_decay, _distance_rate(learning_rate, b1, b2), roles)
    return from_first_gradient(decayed, learning_rate)


def dadapt_adamw(learning_rate, roles: Roles, b1, b2, eps, d0, weight_decay):
    inner = contrib.dadapt_adamw(learning_rate, (b1, b2), eps, d0)
    decayed = decoupled_decay(inner, weight_decay, _distance_rate(learning_rate, b1, b2), roles)
    return from_first_gradient(decayed, learning_rate)


def _distance_rate(learning_rate, b1, b2):
    """The rate of a step whose distance is estimated: `state -> rate`."""

    def rate(state):
        t = state.count + 1
        return learning_rate * state.estim_lr * jnp.sqrt(1 - b2**t) / (1 - b1**t)

    return rate


def dog(learning_rate, roles: Roles, reps_rel, eps, weight_decay):
    return contrib.dog(learning_rate, ("heuristic", reps_rel), eps, weight_decay, decaying(roles))


def dowg(learning_rate, roles: Roles, eps, weight_decay):
    return contrib.dowg(learning_rate, None, eps, weight_decay, decaying(roles))
