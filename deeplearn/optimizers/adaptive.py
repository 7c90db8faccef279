"""Optimizers that divide each number's step by what its gradients have been: in another form than Optax has them.

Each is `(learning_rate, **hyperparameters) -> optax.GradientTransformation`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs as Transformation

from deeplearn.optimizers.transformations import Roles


class Moments(NamedTuple):
    """The state of an optimizer of two moments; nu is of g^2, or what takes its place."""

    count: jax.Array
    mu: Any
    nu: Any


def started(params) -> Moments:
    return Moments(jnp.int32(0), optax.tree.zeros_like(params), optax.tree.zeros_like(params))


def adagrad(learning_rate, initial_accumulator_value, eps):
    """w <- w - rate g / (sqrt(sum of all g^2) + eps); Optax has eps inside the root.

    Source: Duchi, Hazan and Singer 2011, figure 1.
    """

    def init(params):
        return jax.tree.map(lambda w: jnp.full_like(w, initial_accumulator_value), params)

    def update(grads, sums, params=None):
        sums = jax.tree.map(lambda s, g: s + g**2, sums, grads)
        return jax.tree.map(lambda g, s: -learning_rate * g / (jnp.sqrt(s) + eps), grads, sums), sums

    return optax.GradientTransformation(init, update)


def adam(learning_rate, b1, b2, eps, bias_correction):
    direction = scale_by_adam(b1, b2, eps, bias_correction)
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


def scale_by_adam(b1, b2, eps, bias_correction: bool) -> optax.GradientTransformation:
    """Adam's direction, m / (sqrt(v) + eps), with or without the correction of m's and v's bias to zero.

    Source: Kingma and Ba 2015, algorithm 1 and section 6.4; Devlin et al. 2019 trained BERT without it.
    """
    if bias_correction:
        return optax.scale_by_adam(b1, b2, eps)

    def update(grads, state, params=None):
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        directions = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return directions, Moments(state.count + 1, mu, nu)

    return optax.GradientTransformation(started, update)


class AmsgradState(NamedTuple):
    count: jax.Array
    mu: Any
    nu: Any
    largest: Any


def amsgrad(learning_rate, b1, b2, eps):
    """Adam whose second moment never falls: w <- w - rate m / (1 - b1^t) / (sqrt(max v / (1 - b2^t)) + eps).

    The largest of the uncorrected moments, as in PyTorch; Optax corrects them first. The paper corrects neither.
    Source: Reddi, Kale and Kumar 2018, algorithm 2.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return AmsgradState(jnp.int32(0), zeros, zeros, zeros)

    def update(grads, state, params=None):
        count = state.count + 1
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        largest = jax.tree.map(jnp.maximum, state.largest, nu)
        directions = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(largest, b2, count),
        )
        return optax.tree.scale(-learning_rate, directions), AmsgradState(count, mu, nu, largest)

    return optax.GradientTransformation(init, update)


class NadamState(NamedTuple):
    count: jax.Array
    product: jax.Array  # of the momentum's values up to now
    mu: Any
    nu: Any


def nadam(learning_rate, b1, b2, eps, momentum_decay):
    """Adam with Nesterov's momentum, which rises: mu_t = b1 (1 - 0.96^(t momentum_decay) / 2).

    Source: Dozat 2016, Incorporating Nesterov momentum into Adam, algorithm 2, with the schedule of its section 3.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return NadamState(jnp.int32(0), jnp.ones_like(jax.tree.leaves(params)[0], shape=()), zeros, zeros)

    def momentum(t):
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def update(grads, state, params=None):
        t = state.count + 1
        now, following = momentum(t), momentum(t + 1)
        product = state.product * now
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        of_gradient, of_momentum = (1 - now) / (1 - product), following / (1 - product * following)
        directions = jax.tree.map(
            lambda g, m, v: (of_gradient * g + of_momentum * m) / (jnp.sqrt(v) + eps),
            grads,
            mu,
            optax.tree.bias_correction(nu, b2, t),
        )
        return optax.tree.scale(-learning_rate, directions), NadamState(t, product, mu, nu)

    return optax.GradientTransformation(init, update)


class AdanState(NamedTuple):
    count: jax.Array
    grads: Any  # of the step before
    mu: Any
    differences: Any
    nu: Any


def adan(learning_rate, roles: Roles, b1, b2, b3, eps, weight_decay):
    """Adam with a momentum d of the gradient's differences: w <- (w - rate (m + b2 d) / (sqrt(n) + eps)) / (1 + decay).

    The decay is rate * weight_decay for kernels and embeddings, 0 for vectors.
    n is the moment of (g + b2 (g - before))^2; all three are corrected for their bias to zero. Optax's weighs d with
    1 - b2: the paper's b2 is one minus that of this signature.
    Source: Xie et al. 2022, Adan, algorithm 1.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return AdanState(jnp.int32(0), zeros, zeros, zeros, zeros)

    def update(grads, state, params):
        count = state.count + 1
        change = jax.tree.map(lambda g, before: jnp.where(count > 1, g - before, 0.0), grads, state.grads)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        differences = optax.tree.update_moment(change, state.differences, b2, 1)
        nu = optax.tree.update_moment(jax.tree.map(lambda g, d: g + b2 * d, grads, change), state.nu, b3, 2)
        directions = jax.tree.map(
            lambda m, d, n: (m + b2 * d) / (jnp.sqrt(n) + eps),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(differences, b2, count),
            optax.tree.bias_correction(nu, b3, count),
        )

        def step(direction, w, role):
            decay = learning_rate * weight_decay if role.decays else 0.0
            return (w - learning_rate * direction) / (1 + decay) - w

        updates = jax.tree.map(step, directions, params, roles(params))
        return updates, AdanState(count, grads, mu, differences, nu)

    return optax.GradientTransformation(init, update)


def radam(learning_rate, b1, b2, eps, threshold):
    """Adam at the rate r_t, or momentum alone while the second moment is worth `threshold` gradients or fewer.

    Optax adds eps after the correction of the second moment's bias, PyTorch before.
    Source: Liu et al. 2020, algorithm 2.
    """

    def update(grads, state, params=None):
        count = state.count + 1
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        left = 1 - b2**count
        most = 2 / (1 - b2) - 1
        length = most - 2 * count * b2**count / left
        square = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
        scale = jnp.sqrt(jnp.maximum(square, 0.0) * left)
        directions = jax.tree.map(
            lambda m, v: m * jnp.where(length > threshold, scale / (jnp.sqrt(v) + eps), 1.0),
            optax.tree.bias_correction(mu, b1, count),
            nu,
        )
        return optax.tree.scale(-learning_rate, directions), Moments(count, mu, nu)

    return optax.GradientTransformation(started, update)


def yogi(learning_rate, b1, b2, eps):
    """Adam whose second moment moves by bounded steps: v <- v - (1 - b2) sign(v - g^2) g^2, from 1e-6.

    Optax begins the first moment at 1e-6, too.
    Source: Zaheer et al. 2018, algorithm 2.
    """

    def init(params):
        return started(params)._replace(nu=optax.tree.full_like(params, 1e-6))

    def update(grads, state, params=None):
        count = state.count + 1
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = jax.tree.map(lambda v, g: v - (1 - b2) * jnp.sign(v - g**2) * g**2, state.nu, grads)
        directions = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mu, b1, count),
            optax.tree.bias_correction(nu, b2, count),
        )
        return optax.tree.scale(-learning_rate, directions), Moments(count, mu, nu)

    return optax.GradientTransformation(init, update)


class MadgradState(NamedTuple):
    count: jax.Array
    start: Any
    sums: Any
    squares: Any


def madgrad(learning_rate, momentum, eps):
    """w <- momentum w + (1 - momentum) (w_1 - s / (cbrt(v) + eps)); s and v are sums of rate sqrt(t) g, of g^2 in v.

    Optax adds eps to the rate, and takes the root of t in float32.
    Source: Defazio and Jelassi 2022, algorithm 1.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return MadgradState(jnp.int32(0), params, zeros, zeros)

    def update(grads, state, params):
        count = state.count + 1
        weight = learning_rate * jnp.sqrt(count.astype(jnp.result_type(learning_rate)))
        sums = jax.tree.map(lambda s, g: s + weight * g, state.sums, grads)
        squares = jax.tree.map(lambda v, g: v + weight * g**2, state.squares, grads)
        averaged = jax.tree.map(lambda w, s, v: w - s / (jnp.cbrt(v) + eps), state.start, sums, squares)
        updates = jax.tree.map(lambda z, w: (1 - momentum) * (z - w), averaged, params)
        return updates, MadgradState(count, state.start, sums, squares)

    return optax.GradientTransformation(init, update)


class SophiaState(NamedTuple):
    moments: Moments  # nu is of the Hessian's diagonal
    key: jax.Array


def sophia(learning_rate, b1, b2, eps, gamma, clip_threshold, update_interval: int):
    """w <- w - rate clip(m / max(gamma h, eps), clip_threshold), with a new h every `update_interval` steps.

    h is the moment of u (H u) with random signs u, for the loss of the same step, from the first step on. Optax uses h
    one step later, and corrects m for its bias to zero.
    Source: Liu et al. 2024, algorithm 3.
    """

    def init(params):
        return SophiaState(started(params), jax.random.PRNGKey(0))

    def update(grads, state, params, *, value_fn, **_):
        count, mu, nu = state.moments

        def estimate():
            key, subkey = jax.random.split(state.key)
            signs = optax.tree.random_like(subkey, params, jax.random.rademacher)
            product = jax.jvp(jax.grad(value_fn), (params,), (signs,))[1]
            return optax.tree.update_moment(optax.tree.mul(signs, product), nu, b2, 1), key

        mu = optax.tree.update_moment(grads, mu, b1, 1)
        nu, key = jax.lax.cond(count % update_interval == 0, estimate, lambda: (nu, state.key))
        updates = jax.tree.map(
            lambda m, h: -learning_rate * jnp.clip(m / jnp.maximum(gamma * h, eps), -clip_threshold, clip_threshold),
            mu,
            nu,
        )
        return updates, SophiaState(Moments(count + 1, mu, nu), key)

    return Transformation(init, update)
