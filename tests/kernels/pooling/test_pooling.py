import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import pooling
from kernels.convolution.windows import geometry, pair

CASES = [
    # shape, window, strides, padding
    ((2, 8, 8, 3), 2, None, "VALID"),
    ((2, 9, 7, 3), 2, None, "VALID"),
    ((2, 9, 7, 3), 3, 2, "VALID"),
    ((2, 9, 8, 3), 3, 2, "SAME"),
    ((2, 9, 8, 3), (3, 2), (1, 2), 1),
    ((1, 6, 6, 2), 3, 1, ((0, 1), (1, 0))),
    ((1, 5, 5, 1), 5, None, "VALID"),
]
KINDS = {"max_pool": np.max, "average_pool": np.mean, "sum_pool": np.sum}


def formula(kind, x, window, strides, padding):
    """Window by window, in float64."""
    window = pair("window", window)
    strides = window if strides is None else pair("strides", strides)
    pads = geometry(x.shape[1:3], window, strides, padding).padding
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)), constant_values=-np.inf if kind == "max_pool" else 0)
    view = np.lib.stride_tricks.sliding_window_view(x, window, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return KINDS[kind](view, axis=(-2, -1))


@pytest.mark.parametrize("shape, window, strides, padding", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", [None, "reference", "xla"])
def test_values(kind, implementation, shape, window, strides, padding, key):
    x = jax.random.normal(key, shape)
    y = getattr(pooling, kind)(x, window, strides, padding, implementation)
    np.testing.assert_allclose(y, formula(kind, x, window, strides, padding), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape, window, strides, padding", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
def test_gradients(kind, ties, shape, window, strides, padding, key):
    """Those of the reference, which gives a maximum's gradient to the first of equals."""
    x = jax.random.normal(key, shape)
    x = jnp.round(x) if ties else x
    pool = getattr(pooling, kind)
    y = pool(x, window, strides, padding)
    dy = jax.random.normal(jax.random.fold_in(key, 1), y.shape)
    one, other = (
        jax.grad(lambda x, name=name: (pool(x, window, strides, padding, name) * dy).sum())(x)
        for name in ("xla", "reference")
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.isclose(one.sum(), dy.sum(), rtol=1e-3) or kind != "max_pool"


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("window, strides", [(2, 2), (2, 1), (3, 2)])
def test_the_first_of_equals_has_the_gradient(implementation, window, strides, key):
    """As in `lax.reduce_window`, whose gradient is an implementation of its own."""
    x = jax.random.randint(key, (4, 7, 7, 3), 0, 3).astype(jnp.float32)
    pool = lambda x: pooling.max_pool(x, window, strides, "VALID", implementation)  # noqa: E731
    dims, steps = (1, window, window, 1), (1, strides, strides, 1)
    lax_pool = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, dims, steps, "VALID")  # noqa: E731
    dy = jax.random.normal(key, pool(x).shape)
    ours, theirs = (jax.vjp(f, x)[1](dy)[0] for f in (pool, lax_pool))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window, strides", [(2, None), (3, 2)])
def test_no_select_and_scatter(window, strides):
    """What makes XLA's own gradient slow."""
    gradient = jax.jit(jax.grad(lambda x: pooling.max_pool(x, window, strides).sum()))
    text = gradient.lower(jnp.ones((2, 8, 8, 3))).compile().as_text()
    assert "select-and-scatter" not in text and "reduce-window" not in text


@pytest.mark.parametrize("window, strides", [(2, None), (3, 2)])
def test_under_transformations(window, strides, key):
    x = jax.random.normal(key, (3, 2, 8, 8, 3))
    single = jnp.stack([pooling.max_pool(each, window, strides) for each in x])
    np.testing.assert_array_equal(jax.vmap(lambda x: pooling.max_pool(x, window, strides))(x), single)
    np.testing.assert_array_equal(jax.lax.map(lambda x: pooling.max_pool(x, window, strides), x), single)
    cube = lambda x: (pooling.max_pool(x, window, strides) ** 3).sum()  # noqa: E731
    v = jax.random.normal(jax.random.fold_in(key, 1), x[0].shape)
    curvature = jax.grad(lambda x: (jax.grad(cube)(x) * v).sum())(x[0])
    slope = lambda t: jax.grad(cube)(x[0] + t * v)  # noqa: E731
    np.testing.assert_allclose(curvature, (slope(1e-3) - slope(-1e-3)) / 2e-3, atol=2e-2)


def test_bfloat16(key):
    x = jax.random.normal(key, (2, 8, 8, 3), jnp.bfloat16)
    for kind in KINDS:
        y = getattr(pooling, kind)(x, 3, 2)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            y.astype(jnp.float32), formula(kind, x.astype(jnp.float32), 3, 2, "VALID"), rtol=2**-8, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_global_pools(kind, key):
    x = jax.random.normal(key, (2, 5, 4, 3))
    pool = getattr(pooling, f"global_{kind}")
    np.testing.assert_allclose(pool(x), KINDS[kind](np.asarray(x, np.float64), axis=(1, 2)), atol=1e-5)
    whole = lambda x: getattr(pooling, kind)(x, (5, 4))[:, 0, 0]  # noqa: E731
    x = jnp.round(x)  # with ties
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (pool, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_nan_is_the_maximum(implementation, key):
    """Wherever it is in the window; and it has the gradient."""
    x = jax.random.normal(key, (1, 8, 8, 1)).at[0, 2, 3, 0].set(jnp.nan)
    pool = lambda x: pooling.max_pool(x, 3, 1, "VALID", implementation)  # noqa: E731
    y, pull = jax.vjp(pool, x)
    seen = np.zeros((6, 6), bool)
    seen[:3, 1:4] = True
    np.testing.assert_array_equal(np.isnan(y[0, ..., 0]), seen)
    assert pull(jnp.ones_like(y))[0][0, 2, 3, 0] == 9


def test_float64(key):
    with jax.enable_x64(True):
        x = jax.random.normal(key, (2, 7, 6, 3), jnp.float64)
        for kind in KINDS:
            np.testing.assert_allclose(
                getattr(pooling, kind)(x, 3, 2), formula(kind, x, 3, 2, "VALID"), rtol=1e-13, atol=1e-15
            )


@pytest.mark.parametrize("name, needed", [("tpu", "tpu"), ("hopper", "cuda")])
def test_kernels_elsewhere(name, needed):
    with pytest.raises(NotImplementedError, match=f"implementation='{name}' runs on {needed}, and this is cpu"):
        pooling.max_pool(jnp.ones((1, 4, 4, 1)), 2, implementation=name)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"window": 9}, r"window \(9, 9\).*larger than the input \(8, 8\)"),
        ({"window": 0}, "window must be a positive int"),
        ({"window": 2, "strides": (1, 2, 3)}, "strides must be"),
        ({"window": 2, "padding": -1}, "padding must be"),
        ({"window": 2, "padding": "FULL"}, "padding must be"),
        ({"window": 2, "padding": 2}, "padding .* must be smaller than the window"),
        ({"window": 2, "implementation": "cuda"}, "implementation must be"),
    ],
)
def test_mistakes(arguments, said):
    with pytest.raises(ValueError, match=said):
        pooling.max_pool(jnp.ones((1, 8, 8, 1)), **arguments)
    with pytest.raises(ValueError, match="x must be"):
        pooling.max_pool(jnp.ones((8, 8)), 2)
