"""Kernels behind the public functions: the epilogue and its derivatives of all orders, batches, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import target
from kernels.convolution import convolution, convolution_transpose
from kernels.convolution.epilogue import ACTIVATIONS
from kernels.pooling import average_pool, max_pool, sum_pool


@pytest.fixture(autouse=True)
def interpreted():
    """Pallas's plain interpreter, which knows vmap."""
    with target.interpreted(True):
        yield


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, W = draw(0, 2, 5, 6, 17), 0.5 * draw(1, 3, 3, 17, 18)  # many sums are above 6, where relu6 ends
ROWS = {"bias": draw(2, 18), "scale": 1 + 0.1 * draw(3, 18), "shift": draw(4, 18), "residual": draw(5, 2, 3, 3, 18)}


def both(function, *arrays):
    """By the kernel and by the formula."""
    return [jax.tree.leaves(function(name, *arrays)) for name in ("tpu", "reference")]


def close(ours, theirs, bound=2e-6):
    for a, b in zip(ours, theirs, strict=True):
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        assert a.shape == b.shape and np.linalg.norm(a - b) <= bound * np.linalg.norm(b)


@pytest.mark.parametrize("names", [(), ("bias",), ("bias", "scale", "shift", "residual")])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_the_epilogue_and_its_gradients(activation, names):
    given = {name: ROWS[name] for name in names}

    def run(name, x, w, given):
        layer = lambda x, w, given: convolution(  # noqa: E731
            x, w, strides=2, activation=activation, implementation=name, **given
        )
        y, pull = jax.vjp(layer, x, w, given)
        return y, pull(jnp.cos(y))

    close(*both(run, X, W, given), bound=1e-5)


def test_what_has_no_gradient_costs_nothing():
    """The gradient of images that are not asked for is not computed."""
    loss = lambda w: convolution(X, w, activation="relu", implementation="tpu").sum()  # noqa: E731
    text = str(jax.make_jaxpr(jax.grad(loss))(W))
    assert "convolution_weight_gradient" in text and "convolution_input_gradient" not in text


def test_second_derivatives_and_forward_mode():
    def run(name, x, w):
        loss = lambda x, w: (convolution(x, w, ROWS["bias"], activation="tanh", implementation=name) ** 2).sum()  # noqa: E731
        both = lambda x, w: sum((g**2).sum() for g in jax.grad(loss, argnums=(0, 1))(x, w))  # noqa: E731
        return jax.grad(both, argnums=(0, 1))(x, w), jax.jvp(jax.grad(loss), (x, w), (x, w))

    close(*both(run, X, W), bound=1e-4)


@pytest.mark.parametrize("axes", [(0, None, 0), (None, 0, None), (0, 0, 0)])
def test_batches(axes):
    operands = [
        jnp.stack([a, 2 * a]) if axis == 0 else a for a, axis in zip((X, W, draw(5, 2, 5, 6, 18)), axes, strict=True)
    ]

    def run(name, *operands):
        layer = lambda x, w, r: convolution(x, w, residual=r, activation="relu", implementation=name)  # noqa: E731
        grad = jax.grad(lambda *a: (layer(*a) ** 2).sum(), argnums=(0, 1, 2))
        return jax.vmap(grad, in_axes=axes)(*operands)

    close(*both(run, *operands), bound=1e-5)


def test_the_transpose():
    def run(name, x, w):
        layer = lambda x, w: convolution_transpose(x, w, strides=2, activation="relu", implementation=name)  # noqa: E731
        y, pull = jax.vjp(layer, x, w)
        return y, pull(y)

    close(*both(run, X, W))


@pytest.mark.parametrize("pool", [max_pool, average_pool, sum_pool])
def test_pooling(pool):
    """Gradients, their gradients, and batches."""

    def run(name, x):
        cube = lambda x: (pool(x, 3, 2, "SAME", name) ** 3).sum()  # noqa: E731
        slope = lambda x: (jax.grad(cube)(x) ** 2).sum()  # noqa: E731
        return jax.grad(cube)(x), jax.grad(slope)(x), jax.vmap(jax.grad(cube))(x.reshape(2, 1, *x.shape[1:]))

    close(*both(run, jnp.round(2 * X)), bound=1e-5)


def test_refusals():
    with pytest.raises(NotImplementedError, match="implementation='tpu' has no float64"), jax.enable_x64(True):
        convolution(jnp.ones((1, 4, 4, 2), jnp.float64), jnp.ones((3, 3, 2, 2), jnp.float64), implementation="tpu")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("a",))
    with jax.set_mesh(mesh), pytest.raises(NotImplementedError, match=r"within jax\.shard_map, or by explicit axes"):
        convolution(X, W, implementation="tpu")


def test_refusals_elsewhere(monkeypatch):
    monkeypatch.setattr(target, "_interpreter", None)
    with pytest.raises(NotImplementedError, match="implementation='hopper' runs on cuda, and this is cpu"):
        convolution(X, W, implementation="hopper")
