"""The Hopper kernels of pooling, interpreted on a CPU with races detected, against XLA's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import target
from kernels.convolution.windows import geometry
from kernels.pooling import hopper, reference
from tests.kernels.hopper import interpreting

CASES = {
    # x, window, strides, padding
    "2x2": ((2, 8, 8, 8), (2, 2), 2, "VALID"),
    "3x3, stride 2": ((2, 9, 8, 24), (3, 3), 2, 1),
    "windows that overlap": ((1, 9, 7, 70), (3, 2), 1, "SAME"),
    "pixels beyond the last window": ((1, 9, 7, 5), (2, 2), (2, 2), "VALID"),
    "uneven": ((1, 9, 17, 8), (4, 5), (2, 3), ((2, 1), (0, 2))),
    "strides beyond the window": ((1, 7, 8, 8), (1, 2), (2, 3), "VALID"),
    "one window": ((2, 5, 5, 8), (5, 5), 5, "VALID"),
    "one pixel": ((2, 1, 1, 8), (3, 3), 2, 1),
}
BOUND = 2.5e-3, 2e-7  # one rounding to bfloat16, and to float32


@pytest.fixture(autouse=True)
def interpreted(capsys):
    with interpreting(capsys):
        yield


def operands(case, dtype):
    """The window, its geometry, x with many equal values, dy, and XLA's pooling by an operation."""
    shape, window, strides, padding = case
    found, generator = geometry(shape[1:3], window, strides, padding), np.random.default_rng(0)
    x = jnp.asarray(generator.integers(0, 5, size=shape), dtype)
    dy = jnp.asarray(generator.normal(size=(shape[0], *found.output(shape[1:3], window), shape[3])), dtype)
    sizes = (1, *window, 1), (1, *found.strides, 1), ((0, 0), *found.padding, (0, 0))
    return window, found, x, dy, lambda first, combine: lambda x: jax.lax.reduce_window(x, first, combine, *sizes)


def wide(x):
    return jnp.asarray(np.asarray(x, np.float64))


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


def check_maximum(case, dtype):
    window, over, x, dy, pool = operands(case, dtype)
    y, pull = jax.vjp(pool(-jnp.inf, jax.lax.max), wide(x))
    found = hopper.max_pool(x, window, over)
    np.testing.assert_array_equal(np.asarray(found, np.float64), y)
    dx = hopper.max_pool_gradient(x, found, dy, window, over)
    assert found.dtype == dx.dtype == dtype and error(dx, pull(wide(dy))[0]) < BOUND[dtype == "float32"]


def check_sum(case, dtype):
    window, over, x, dy, pool = operands(case, dtype)
    y, pull = jax.vjp(lambda x: pool(0.0, jax.lax.add)(x) / 7, wide(x))
    found = hopper.sum_pool(x, window, over, 1 / 7)
    dx = hopper.sum_pool_gradient(dy, x.shape[1:3], window, over, 1 / 7)
    assert found.dtype == dx.dtype == dtype
    assert error(found, y) < BOUND[dtype == "float32"] and error(dx, pull(wide(dy))[0]) < BOUND[dtype == "float32"]


@pytest.mark.parametrize("case", CASES)
def test_maximum(case):
    """And its gradient, which goes to the first of equals, as XLA's does."""
    check_maximum(CASES[case], "bfloat16")


@pytest.mark.parametrize("case", CASES)
def test_sum(case):
    check_sum(CASES[case], "bfloat16")


@pytest.mark.parametrize("check", [check_maximum, check_sum])
def test_float32(check):
    check(CASES["3x3, stride 2"], "float32")


@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_geometry(data):
    """Whatever the size, window, stride and padding of each axis."""
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    window, strides = ((number(1, 4), number(1, 4)) for _ in range(2))
    padding = tuple((number(0, k - 1), number(0, k - 1)) for k in window)
    size = tuple(number(max(k - sum(p), 1), 9) for k, p in zip(window, padding, strict=True))
    case = (number(1, 2), *size, 8), window, strides, padding
    check_maximum(case, "bfloat16")
    check_sum(case, "bfloat16")


def test_nan():
    """A window with NaN gives NaN, and its gradient goes to the first NaN."""
    x = jnp.asarray(np.arange(16.0).reshape(1, 4, 4, 1), jnp.float32)
    x = x.at[0, 0, 1].set(jnp.nan).at[0, 1, 0].set(jnp.nan).at[0, 3, 2].set(-jnp.inf)
    over = geometry((4, 4), (2, 2), 2, "VALID")
    y = hopper.max_pool(x, (2, 2), over)
    np.testing.assert_array_equal(y[0, ..., 0], [[np.nan, 7], [13, 15]])
    dy = jnp.asarray([[1.0, 2.0], [3.0, 4.0]], jnp.float32).reshape(1, 2, 2, 1)
    dx = hopper.max_pool_gradient(x, y, dy, (2, 2), over)
    np.testing.assert_array_equal(dx[0, ..., 0], [[0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0], [0, 3, 0, 4]])


@pytest.mark.parametrize("padding", [0, 1])
def test_of_infinities_alone_the_first_that_is_no_padding_has_the_gradient(padding):
    x, over = jnp.full((1, 6, 6, 8), -jnp.inf), geometry((6, 6), (3, 3), 3 - padding, padding)
    dy = jnp.arange(1.0, 1 + 8 * (2 + padding) ** 2).reshape(1, 2 + padding, 2 + padding, 8)
    y = hopper.max_pool(x, (3, 3), over)
    wanted = jax.vjp(lambda x: reference.max_pool(x, (3, 3), over), x)[1](dy)[0]
    assert (y == -jnp.inf).all() and wanted.sum() == dy.sum()
    np.testing.assert_array_equal(hopper.max_pool_gradient(x, y, dy, (3, 3), over), wanted)


def test_what_it_refuses(monkeypatch):
    x, over = jnp.zeros((1, 8, 8, 8), jnp.bfloat16), geometry((8, 8), (2, 2), 2, "VALID")
    assert hopper.refuses(x, (2, 2), over) is None
    assert hopper.refuses(x.astype(jnp.float16), (2, 2), over) == "has no float16"
    large = jax.ShapeDtypeStruct((1, 64, 64, 8), "bfloat16")
    assert (
        hopper.refuses(large, (60, 60), geometry((64, 64), (60, 60), 60, "VALID"))
        == "has no windows of 60 x 60 with strides (60, 60)"
    )
    monkeypatch.setattr(target, "interpreter", lambda: None)
    monkeypatch.setattr(target, "device", lambda: ("cuda", "NVIDIA A100-SXM4-80GB"))
    assert hopper.refuses(x, (2, 2), over).endswith("and this is NVIDIA A100-SXM4-80GB")
