"""Optimizers that Optax lacks, or has in a form that no sweep can vary or that knows no mask for its decay.

Each is `(learning_rate, **hyperparameters) -> optax.GradientTransformation`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs as Transformation
from optax import contrib

from deeplearn.optimizers.transformations import TINY, decoupled_decay, from_first_gradient, inputs, weights, where


def adam(learning_rate, b1, b2, eps, bias_correction):
    direction = scale_by_adam(b1, b2, eps, bias_correction)
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


def adamw(learning_rate, b1, b2, eps, bias_correction, weight_decay):
    inner = adam(learning_rate, b1, b2, eps, bias_correction)
    return decoupled_decay(inner, weight_decay, lambda state: learning_rate)


class Moments(NamedTuple):
    mu: Any
    nu: Any


def scale_by_adam(b1, b2, eps, bias_correction: bool) -> optax.GradientTransformation:
    """Adam's direction, m / (sqrt(v) + eps), with or without the correction of m's and v's bias to zero.

    Source: Kingma and Ba 2015, algorithm 1 and section 6.4; Devlin et al. 2019 trained BERT without it.
    """
    if bias_correction:
        return optax.scale_by_adam(b1, b2, eps)

    def init(params):
        return Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(grads, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), Moments(mu, nu)

    return optax.GradientTransformation(init, update)


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


def schedule_free_sgd(learning_rate, b1, weight_decay, weight_lr_power):
    sgd = decoupled_decay(optax.sgd(learning_rate), weight_decay, lambda state: learning_rate)
    return schedule_free(sgd, learning_rate, b1, weight_lr_power)


def schedule_free_adamw(learning_rate, b1, b2, eps, weight_decay, weight_lr_power):
    # Adam with b1 = 0: the averaging takes the place of the momentum.
    direction = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    adam = optax.chain(direction, optax.scale_by_learning_rate(learning_rate))
    adamw = decoupled_decay(adam, weight_decay, lambda state: learning_rate)
    return schedule_free(adamw, learning_rate, b1, weight_lr_power)


def novograd(learning_rate, b1, b2, eps, weight_decay):
    # The paper decays inside the momentum, which multiplies it by 1 / (1 - b1); Optax has no mask there.
    inner = optax.novograd(learning_rate, b1, b2, eps)
    return decoupled_decay(inner, weight_decay, lambda state: learning_rate)


def sophia(learning_rate, **hyperparameters):
    inner = contrib.sophia(learning_rate, weight_decay_mask=weights, **hyperparameters)

    def update(grads, state, params, *, value_fn, **_):
        return inner.update(grads, state, params, obj_fn=value_fn)

    return Transformation(inner.init, update)


def lbfgs(learning_rate, memory_size: int):
    inner = optax.lbfgs(learning_rate, memory_size)

    def update(grads, state, params, *, value, grad, value_fn, **_):
        return inner.update(grads, state, params, value=value, grad=grad, value_fn=value_fn)

    return Transformation(inner.init, update)


def muon(learning_rate, weight_decay, **hyperparameters):
    inner = contrib.muon(learning_rate, muon_weight_dimension_numbers=muon_dimensions, **hyperparameters)
    return decoupled_decay(inner, weight_decay, lambda state: learning_rate)


def muon_dimensions(params):
    """Kernels as matrices from all of a unit's inputs to the units; None, hence Adam, for everything else."""

    def dimensions(path, x, is_kernel):
        return contrib.MuonDimensionNumbers(inputs(path, x), x.ndim - 1) if is_kernel else None

    return jax.tree_util.tree_map_with_path(dimensions, params, weights(params, ("kernel",)))


def prodigy(learning_rate, b1, b2, eps, d0, d_coef, weight_decay):
    inner = contrib.prodigy(learning_rate, (b1, b2), None, eps, d0, d_coef)
    decayed = decoupled_decay(inner, weight_decay, lambda state: learning_rate * state.estim_lr)
    return from_first_gradient(decayed, learning_rate)


def dadapt_adamw(learning_rate, b1, b2, eps, d0, weight_decay):
    inner = contrib.dadapt_adamw(learning_rate, (b1, b2), eps, d0)
    decayed = decoupled_decay(inner, weight_decay, lambda state: learning_rate * state.estim_lr)
    return from_first_gradient(decayed, learning_rate)


def dog(learning_rate, reps_rel, eps, weight_decay):
    return contrib.dog(learning_rate, ("heuristic", reps_rel), eps, weight_decay, weights)
