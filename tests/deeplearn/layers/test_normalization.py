"""Batch normalisation against Flax's and PyTorch's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.layers.normalization import BatchNorm, normalize

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


def variables(channels):
    random = np.random.default_rng(0)

    def draw(low, high):
        return jnp.float32(random.uniform(low, high, channels))

    return {
        "params": {"scale": draw(0.5, 1.5), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


def peer(train):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)


def test_its_variables_are_flaxs():
    x = jnp.ones((2, 3))
    found, expected = BatchNorm().init(jax.random.key(0), x, True), peer(True).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("shape", [(16, 3), (4, 5, 5, 2)])
@pytest.mark.parametrize("train", [True, False])
def test_it_and_its_gradient_are_flaxs(shape, train):
    x = 2 + 3 * jax.random.normal(jax.random.key(1), shape)
    state = variables(shape[-1])

    def run(apply):
        def loss(params, x):
            y, updates = apply({**state, "params": params}, x)
            return (jnp.sin(y) * jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape)).mean(), (y, updates)

        return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(state["params"], x)

    found = run(lambda v, x: BatchNorm().apply(v, x, train, mutable=["batch_stats"]))
    expected = run(lambda v, x: peer(train).apply(v, x, mutable=["batch_stats"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_it_and_its_gradient_are_pytorchs():
    torch = pytest.importorskip("torch")
    x, state = jax.random.normal(jax.random.key(1), (8, 4, 4, 3)), variables(3)
    layer = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.array(state["params"]["scale"])))
        layer.bias.copy_(torch.tensor(np.array(state["params"]["bias"])))
    t = torch.tensor(np.array(x).transpose(0, 3, 1, 2), requires_grad=True)
    expected = layer(t)
    expected.sin().sum().backward()

    def loss(x):
        y, _ = BatchNorm().apply(state, x, True, mutable=["batch_stats"])
        return jnp.sin(y).sum(), y

    gradient, y = jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(y, expected.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(gradient, t.grad.permute(0, 2, 3, 1), atol=1e-4)


def test_second_derivatives_are_autodiffs():
    x, scale, bias = jax.random.normal(jax.random.key(0), (6, 2)), jnp.array([0.5, 2.0]), jnp.array([1.0, -1.0])

    def plain(x, scale, bias):
        return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5) * scale[None] + bias[None]

    def second(function):
        gradient = jax.grad(lambda x: jnp.sin(function(x, scale, bias)).sum())
        return jit(jax.grad(lambda x: jnp.cos(gradient(x)).sum()))(x)

    found = second(lambda *arguments: normalize(*arguments, 1e-5)[0])
    np.testing.assert_allclose(found, second(plain), rtol=1e-3, atol=1e-4)


def test_a_constant_channel_far_from_zero_has_no_negative_variance():
    y, mean, var = normalize(jnp.full((64, 1), 1234.567), jnp.ones(1), jnp.zeros(1), 1e-5)
    assert var >= 0 and jnp.isfinite(y).all()
    np.testing.assert_allclose(mean, 1234.567, rtol=1e-6)


def test_bfloat16_moments_are_float32():
    x = jax.random.normal(jax.random.key(0), (32, 4), jnp.bfloat16)
    y, updates = BatchNorm(dtype=jnp.bfloat16).apply(variables(4), x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
