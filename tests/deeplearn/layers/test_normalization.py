"""Batch normalisation against Flax's and PyTorch's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.layers.normalization import BatchNorm, normalize
from deeplearn.models import gpt, transformer
from deeplearn.parallel import mesh as meshes

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


# large means


def shifted(mean, shape, dtype=np.float32, deviation=1.0):
    """Data as they are after rounding to the dtype, and a cotangent."""
    random = np.random.default_rng(2)
    x = np.asarray(jnp.asarray(mean + deviation * random.normal(size=shape), dtype))
    return x, random.normal(size=shape).astype(np.float32)


def in_float64(x, cotangent, state, epsilon=1e-5):
    """Output, gradient for x and new running statistics, by the formulas of the docstring."""
    x, dy = x.astype(np.float64), cotangent.astype(np.float64)
    scale, bias = (np.float64(state["params"][name]) for name in ("scale", "bias"))
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    r = 1 / np.sqrt(var + epsilon)
    z = (x - mean) * r
    dx = scale * r * (dy - dy.mean(axes) - z * (dy * z).mean(axes))
    old = state["batch_stats"]
    running = {name: 0.9 * np.float64(old[name]) + 0.1 * new for name, new in (("mean", mean), ("var", var))}
    return z * scale + bias, dx, running


def ours(x, cotangent, state):
    def apply(x):
        y, updates = BatchNorm().apply(state, x, True, mutable=["batch_stats"])
        return (y * cotangent).sum(), (y, updates["batch_stats"])

    dx, (y, running) = jax.grad(apply, has_aux=True)(x)
    return y, dx, running


MEANS = (0.0, -1e3, 1e4, 1e5)


@pytest.mark.parametrize(
    "shape, dtype, deviation",
    [
        ((64, 3), np.float32, 1.0),
        ((32, 16, 16, 3), np.float32, 1.0),  # enough rows for the rounding of a sum to show in the mean
        ((2, 3), np.float32, 1.0),
        ((16, 8, 8, 3), np.float32, 30.0),
        ((16, 8, 8, 3), jnp.bfloat16, 300.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("mean", MEANS)
def test_at_any_mean_it_is_that_of_float64(mean, shape, dtype, deviation):
    x, cotangent = shifted(mean, shape, dtype, deviation)
    state = variables(3)
    expected_y, expected_dx, expected = in_float64(x, cotangent, state)
    y, dx, running = jit(ours)(x, cotangent, state)
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    assert dx.dtype == dtype
    np.testing.assert_allclose(np.float32(dx), expected_dx, rtol=1e-4 + float(jnp.finfo(dtype).eps) / 2, atol=1e-5)
    np.testing.assert_allclose(running["mean"], expected["mean"], rtol=1e-6, atol=1e-6 * deviation)
    np.testing.assert_allclose(running["var"], expected["var"], rtol=2e-5)


@pytest.mark.parametrize("mean", MEANS)
def test_at_any_mean_it_is_pytorchs(mean):
    """Against its double precision: at these means its float32 is off itself, by 0.2 at 1e5."""
    torch = pytest.importorskip("torch")
    x, cotangent = shifted(mean, (8, 6, 6, 3))
    layer = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    t = torch.tensor(x.transpose(0, 3, 1, 2).astype(np.float64), requires_grad=True)
    expected = layer(t)
    expected.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2).astype(np.float64)))
    state = BatchNorm().init(jax.random.key(0), x, True)
    y, dx, running = jit(ours)(x, cotangent, state)
    np.testing.assert_allclose(y, expected.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(dx, t.grad.permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(running["mean"], layer.running_mean, rtol=1e-6, atol=1e-6)
    count = x.size // 3
    unbiased = 0.9 + (running["var"] - 0.9) * count / (count - 1)  # PyTorch's average is of the unbiased variance
    np.testing.assert_allclose(unbiased, layer.running_var, rtol=1e-5)


def test_on_a_mesh_the_moments_are_those_of_the_batch():
    """Not of a device's rows, whose means differ."""
    mesh = meshes.parse("data:8")
    x, cotangent = shifted(1e4, (64, 3))
    x = x + np.repeat(np.arange(8, dtype=np.float32), 8)[:, None]
    state = variables(3)
    placed = jax.device_put((x, cotangent), meshes.batch_sharding(mesh))
    y, dx, running = jit(ours)(*placed, state)
    expected_y, expected_dx, expected = in_float64(x, cotangent, state)
    assert len(y.sharding.device_set) == 8
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), running, expected)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("width", [16, 768])
@pytest.mark.parametrize("model", ["gpt", "vision transformer"])
def test_the_models_layer_norms_too(model, width, mean):
    """Flax's own default is off by 0.4 at a mean of 1e3, and by 1,000 at 1e4; what is left is the mean's rounding."""

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return transformer._norm(x)

    layers = {
        "gpt": (gpt.norm(gpt.Architecture(1, 1, bias=False), "norm"), 1e-5),
        "vision transformer": (Norm(), 1e-6),
    }
    layer, epsilon = layers[model]
    x, _ = shifted(mean, (16, width))
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + epsilon)
    y, _ = jit(layer.init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(y, expected, atol=1e-5 + 4e-7 * abs(mean))
