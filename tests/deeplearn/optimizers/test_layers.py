"""How parameters are stored changes no step: layers in one array, heads as axes, convolutions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplearn import optimizers
from deeplearn.optimizers import layers
from deeplearn.roles import Role, lookup

DEPTH = 3
TEXTS = {"adafactor": "adafactor(min_dim_size_to_factor=2)"}  # so that these small kernels have rows and columns
STACKED = {"kernel": Role("kernel", (1,), (2,), (0,)), "bias": Role("vector", (), (1,), (0,))}


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(x, y, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), x, y)


def value_fn(params):
    return sum(jnp.square(w - 0.3).sum() + jnp.sin(w).sum() for w in jax.tree.leaves(params))


def steps(optimizer, params, number=4):
    @jax.jit
    def step(carry):
        params, state = carry
        value, grads = jax.value_and_grad(value_fn)(params)
        extra = {"value": value, "value_fn": value_fn, "grad_fn": jax.grad(value_fn)}
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    carry = params, optimizer.init(params)
    for _ in range(number):
        carry = step(carry)
    return carry[0]


# Sophia draws a sign for each number of each array, of other arrays others.
@pytest.mark.parametrize("name", sorted(set(optimizers.OPTIMIZERS) - {"sophia"}))
def test_layers_in_one_array_are_layers(name):
    stacked = {"kernel": draw(0, DEPTH, 4, 5), "bias": draw(1, DEPTH, 5)}
    alone = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(DEPTH)]
    options = {"learning_rate": 0.01, "weight_decay": 0.1, "max_norm": 1.0, "clip_norm": 2.0}
    text = TEXTS.get(name, name)
    result = steps(optimizers.make(text, roles=partial(lookup, STACKED), **options), stacked)
    expected = steps(optimizers.make(text, **options), alone)
    close(result, jax.tree.map(lambda *x: jnp.stack(x), *expected))


@pytest.mark.parametrize("name", ["muon", "lamb", "adafactor", "sm3"])
def test_a_stack_of_stacks_with_other_axes_first(name):
    """Experts within layers, the axis of the layers last; beside layers of another number."""
    stacked = {"a": draw(0, 2, 4, 5, DEPTH), "b": draw(1, 2, 4, 5)}
    roles = {"a": Role("kernel", (1,), (2,), (0, 3)), "b": Role("kernel", (1,), (2,), (0,))}
    alone = [[[stacked["a"][i, :, :, j] for j in range(DEPTH)], stacked["b"][i]] for i in range(2)]
    text = TEXTS.get(name, name)
    result = steps(optimizers.make(text, learning_rate=0.01, roles=partial(lookup, roles)), stacked)
    expected = steps(optimizers.make(text, learning_rate=0.01), alone)
    close(result["a"], jnp.stack([jnp.stack(of_a, axis=-1) for of_a, _ in expected]))
    close(result["b"], jnp.stack([of_b for _, of_b in expected]))


MATRICES = {  # a kernel's shape and role, and its matrix: inputs times units
    "a convolution": ((3, 3, 2, 5), Role("kernel", (0, 1, 2), (3,)), lambda w: w.reshape(18, 5)),
    "queries": ((6, 2, 4), Role("kernel", (0,), (1, 2)), lambda w: w.reshape(6, 8)),
    "outputs of heads": ((2, 4, 6), Role("kernel", (0, 1), (2,)), lambda w: w.reshape(8, 6)),
    "one the other way round": ((5, 3), Role("kernel", (1,), (0,)), lambda w: w.T),
    "inputs on both sides": ((3, 4, 2), Role("kernel", (0, 2), (1,)), lambda w: w.transpose(0, 2, 1).reshape(6, 4)),
}


@pytest.mark.parametrize("shape, role, matrix", MATRICES.values(), ids=MATRICES)
def test_muon_and_max_norm_see_a_kernel_as_a_matrix(shape, role, matrix):
    kernel = draw(0, *shape)
    options = {"learning_rate": 0.1, "max_norm": 1.0}
    result = steps(optimizers.make("muon", roles=partial(lookup, {"w": role}), **options), {"w": kernel}, 1)["w"]
    expected = steps(optimizers.make("muon", **options), {"w": matrix(kernel)}, 1)["w"]
    close(matrix(result), expected)
    assert np.all(np.linalg.norm(expected, axis=0) < 1.00001)


def test_muon_brings_singular_values_near_one():
    """And Adam steps what is no kernel."""
    roles = {"w": Role("kernel", (0,), (1,)), "table": Role("embedding", (0,), (1,)), "b": Role("vector", (), (0,))}
    params = {"w": draw(1, 18, 5), "table": draw(0, 7, 3), "b": jnp.ones(5)}  # the gradient of w has full rank
    result = steps(optimizers.make("muon", learning_rate=1.0, roles=partial(lookup, roles)), params, 1)
    singular = np.linalg.svd(result["w"] - params["w"], compute_uv=False)
    assert np.all(np.abs(singular / (0.2 * 18**0.5) - 1) < 0.4)
    others = {name: params[name] for name in ("table", "b")}
    close({name: result[name] for name in others}, steps(optimizers.make("adam", learning_rate=1.0), others, 1))


@pytest.mark.parametrize("name", ["lamb", "lars", "fromage"])
def test_arrays_of_zeros_take_the_learning_rate_itself(name):
    """A bias of zeros has no scale of its own, and has to leave zero."""
    roles = partial(lookup, {"w": Role("kernel", (0,), (1,))})
    optimizer = optimizers.make(name, learning_rate=0.1, weight_decay=0.0, roles=roles)
    params, grads = {"w": jnp.zeros((2, 3))}, {"w": draw(0, 2, 3)}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    expected = {"lamb": jnp.sign(grads["w"]), "lars": grads["w"], "fromage": grads["w"] / 1.01**0.5}[name]
    close(updates["w"], -0.1 * expected)
    ones = {"w": jnp.ones((2, 3))}
    still, _ = optimizer.update({"w": jnp.zeros((2, 3))}, optimizer.init(ones), ones)
    close(still["w"], jnp.full((2, 3), 1 / 1.01**0.5 - 1 if name == "fromage" else 0.0))


def test_newton_schulz_keeps_the_singular_vectors():
    matrix = np.asarray(draw(0, 6, 4), np.float64)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    result = np.asarray(layers.newton_schulz(jnp.float32(matrix), 5, 1e-8))
    off = u.T @ result @ v.T
    np.testing.assert_allclose(off, np.diag(np.diag(off)), atol=1e-5)
    assert np.all((np.diag(off) > 0.65) & (np.diag(off) < 1.25))
    np.testing.assert_allclose(layers.newton_schulz(jnp.float32(matrix.T), 5, 1e-8), result.T, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb", "muon", "schedule_free_adamw", "prodigy", "sophia", "adan"])
def test_weight_decay_and_max_norm_leave_vectors_alone(name):
    params = {"kernel": draw(0, 4, 5), "bias": draw(1, 5)}  # a step at the scale of an array keeps one of equal numbers

    def after(decay):
        return steps(optimizers.make(name, learning_rate=0.1, weight_decay=decay), params, 1)

    with_decay, without = after(0.5), after(0.0)
    close(with_decay["bias"], without["bias"], rtol=1e-6)
    assert not np.allclose(with_decay["kernel"], without["kernel"], rtol=1e-7, atol=0)
