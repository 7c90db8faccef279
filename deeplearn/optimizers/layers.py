"""Optimizers that step each layer at a scale of its own, or as a matrix: they need the role of each parameter.

`roles` is `params -> tree of Role`; see deeplearn.roles.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation as Transformation

from deeplearn.optimizers.transformations import Roles
from deeplearn.roles import Role, name_of

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Muon's iteration (Jordan et al. 2024)


def per_layer(make: Callable[..., Transformation]) -> Callable[..., Transformation]:
    """`make` for models whose layers are one array: each array's norms and statistics are those of one layer.

    Args:
      make: `(learning_rate, roles, **hyperparameters) -> transformation`; each array's update depends on it alone.
    """

    def stacked(learning_rate, roles: Roles, **hyperparameters):
        optimizer = make(learning_rate, lambda params: jax.tree.map(Role.of_one, roles(params)), **hyperparameters)

        def groups(tree, params):
            """The arrays by the sizes of their stacks, axes of the stack in front."""
            result: dict[tuple[int, ...], dict[str, jax.Array]] = {}
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            for (path, x), role in zip(leaves, jax.tree.leaves(roles(params)), strict=True):
                sizes = tuple(x.shape[axis] for axis in role.stack)
                result.setdefault(sizes, {})[name_of(path)] = jnp.moveaxis(x, role.stack, range(len(sizes)))
            return result

        def init(params):
            return {str(n): _mapped(optimizer.init, n)(group) for n, group in groups(params, params).items()}

        def update(grads, state, params):
            updates, moved, by_size = {}, {}, groups(params, params)
            for sizes, group in groups(grads, params).items():
                step = _mapped(optimizer.update, sizes)
                of_group, moved[str(sizes)] = step(group, state[str(sizes)], by_size[sizes])
                updates |= of_group

            def place(path, role):
                return jnp.moveaxis(updates[name_of(path)], range(len(role.stack)), role.stack)

            return jax.tree_util.tree_map_with_path(place, roles(params)), moved

        return Transformation(init, update)

    return stacked


def _mapped(function: Callable, sizes: tuple[int, ...]) -> Callable:
    for _ in sizes:
        function = jax.vmap(function)
    return function


def ratio(above, below):
    """Their quotient; 1 where one of them is 0."""
    usual = (above > 0) & (below > 0)
    return jnp.where(usual, above / jnp.where(usual, below, 1.0), 1.0)


def decaying(roles: Roles) -> Callable[[Any], Any]:
    """Optax's mask for weight decay: `params -> tree of bool`."""
    return lambda params: jax.tree.map(lambda role: role.decays, roles(params))


@per_layer
def lamb(learning_rate, roles: Roles, b1, b2, eps, weight_decay):
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decaying(roles))


@per_layer
def lars(learning_rate, roles: Roles, momentum, trust_coefficient, weight_decay):
    """v <- momentum v + rate local (g + weight_decay w), w <- w - v; local = trust |w| / (|g| + weight_decay |w|).

    Optax divides by |g + weight_decay w|. Vectors do not decay, and their local is 1; so it is where a norm is 0.
    Source: You, Gitman and Ginsburg 2017, algorithm 1 and equation 6.
    """

    def step(v, g, w, role):
        if not role.decays:
            return momentum * v + learning_rate * g
        norm = jnp.linalg.norm(w)
        local = ratio(trust_coefficient * norm, jnp.linalg.norm(g) + weight_decay * norm)
        return momentum * v + learning_rate * local * (g + weight_decay * w)

    def update(grads, velocity, params):
        velocity = jax.tree.map(step, velocity, grads, params, roles(params))
        return optax.tree.scale(-1.0, velocity), velocity

    return Transformation(optax.tree.zeros_like, update)


class NovogradState(NamedTuple):
    count: jax.Array
    mu: Any
    nu: Any  # a number a layer


@per_layer
def novograd(learning_rate, roles: Roles, b1, b2, eps, weight_decay):
    """m <- b1 m + g / (sqrt(v) + eps) + weight_decay w, w <- w - rate m; v is the moment of |g|^2, from the first one.

    Source: Ginsburg et al. 2019, algorithm 1.
    """

    def init(params):
        numbers = jax.tree.map(lambda w: jnp.zeros_like(w, shape=()), params)
        return NovogradState(jnp.int32(0), optax.tree.zeros_like(params), numbers)

    def update(grads, state, params):
        decay = jnp.where(state.count == 0, 0.0, b2)
        nu = jax.tree.map(lambda v, g: decay * v + (1 - decay) * jnp.sum(g**2), state.nu, grads)

        def moment(m, g, v, w, role):
            return b1 * m + g / (jnp.sqrt(v) + eps) + (weight_decay * w if role.decays else 0.0)

        mu = jax.tree.map(moment, state.mu, grads, nu, params, roles(params))
        return optax.tree.scale(-learning_rate, mu), NovogradState(state.count + 1, mu, nu)

    return Transformation(init, update)


@per_layer
def fromage(learning_rate, roles: Roles):
    """w <- (w - rate |w| / |g| g) / sqrt(1 + rate^2); w - rate g where a norm is 0, as in the authors' code.

    Optax takes norms of 1e-6 at least: a bias that starts at 0 stays there.
    Source: Bernstein et al. 2020, On the distance between two neural networks, algorithm 1.
    """

    def step(g, w):
        scale = ratio(jnp.linalg.norm(w), jnp.linalg.norm(g))
        return (w - learning_rate * scale * g) / jnp.sqrt(1 + learning_rate**2) - w

    return optax.stateless(lambda grads, params: jax.tree.map(step, grads, params))


@per_layer
def adafactor(learning_rate, roles: Roles, **hyperparameters):
    return optax.adafactor(learning_rate, **hyperparameters)


@per_layer
def sm3(learning_rate, roles: Roles, momentum):
    # Optax's own eps, 1e-8 in the root, is as large as the square of many a gradient.
    return optax.chain(optax.scale_by_sm3(momentum, 1.0, 0.0), optax.scale_by_learning_rate(learning_rate))


def muon(learning_rate, roles: Roles, beta, ns_steps, nesterov, consistent_rms, adam_b1, adam_b2, eps):
    """Muon on kernels, each as a matrix of all of a unit's inputs times the units; Adam on all other parameters.

    m <- beta m + g; w <- w - rate consistent_rms sqrt(max(inputs, outputs)) orthogonal(g + beta m), with Nesterov's
    momentum, else orthogonal(m).
    Source: Jordan et al. 2024, Muon; Liu et al. 2025, Muon is scalable for LLM training, section 2.2, for the scale.
    """
    chain = optax.chain(
        optax.trace(beta, nesterov),
        per_layer(orthogonalize)(None, roles, steps=ns_steps, scale=consistent_rms, eps=eps),
    )
    adam = optax.scale_by_adam(adam_b1, adam_b2, eps)

    def labels(params):
        return jax.tree.map(lambda role: "muon" if role.kind == "kernel" else "adam", roles(params))

    return optax.chain(
        optax.partition({"muon": chain, "adam": adam}, labels), optax.scale_by_learning_rate(learning_rate)
    )


def orthogonalize(_, roles: Roles, steps: int, scale, eps) -> Transformation:
    """Each kernel's update U S V^T becomes about scale sqrt(max(inputs, outputs)) U V^T."""

    def one(update, role):
        matrix = jnp.transpose(update, (*role.inputs, *role.outputs))
        shape = matrix.shape
        inputs = math.prod(shape[: len(role.inputs)])
        matrix = matrix.reshape(inputs, -1)
        result = newton_schulz(matrix, steps, eps) * (scale * math.sqrt(max(matrix.shape)))
        back = sorted(range(len(shape)), key=(*role.inputs, *role.outputs).__getitem__)
        return jnp.transpose(result.reshape(shape), back)

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, roles(params)))


def newton_schulz(matrix: jax.Array, steps: int, eps) -> jax.Array:
    """About U V^T of a matrix U S V^T, its singular values between 0.7 and 1.2.

    X <- a X + (b X X^T + c (X X^T)^2) X from X = matrix / |matrix|.
    Source: Jordan et al. 2024, Muon.

    >>> newton_schulz(jnp.diag(jnp.array([3.0, 1.0])), 5, 1e-8).round(1)
    Array([[0.8, 0. ],
           [0. , 1.1]], dtype=float32)
    """
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (jnp.linalg.norm(x) + eps)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.T
