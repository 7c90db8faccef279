"""The TPU's pooling in Pallas's interpreter, which looks for races and for reads of what was never written."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from kernels import target
from kernels.convolution.tpu import tiles
from kernels.convolution.windows import geometry, pair
from kernels.pooling import reference, tpu

CASES = {
    # shape, window, strides, padding
    "LeNet-5": ((2, 8, 8, 6), 2, 2, "VALID"),
    "AlexNet": ((2, 9, 9, 20), 3, 2, "VALID"),
    "ResNet-50": ((2, 10, 9, 3), 3, 2, "SAME"),
    "ResNet-50, last": ((2, 3, 3, 20), 3, 3, "VALID"),
    "Inception": ((1, 6, 6, 2), 3, 1, ((0, 1), (1, 0))),
    "odd": ((9, 5, 6, 3), (3, 2), (1, 2), 1),
    "many channels": ((1, 5, 4, 150), 2, 2, "SAME"),
    "windows apart": ((2, 9, 8, 3), 2, 3, "VALID"),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several steps along each axis, several chunks a step, of which the last are not whole."""
    monkeypatch.setattr(tiles, "FEW", 96)
    monkeypatch.setattr(tiles, "BLOCK", 1 << 17)


@pytest.fixture(autouse=True)
def interpreted():
    pltpu.reset_tpu_interpret_mode_state()
    with target.interpreted(pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")):
        yield
    races = interpret_pallas_call.races
    assert races is None or not races.races_found


@functools.partial(jax.jit, static_argnums=(0, 1))
def found(window, resolved, x, dy):
    y, mean = tpu.max_pool(x, window, resolved), 1 / math.prod(window)
    gradient = tpu.sum_pool_gradient(dy, x.shape[1:3], window, resolved, mean)
    return {
        "max_pool": (y, tpu.max_pool_gradient(x, y, dy, window, resolved)),
        "sum_pool": (tpu.sum_pool(x, window, resolved, mean), gradient),
    }


def check(case, dtype, ties=False):
    shape, window, strides, padding = case
    window = pair("window", window)
    resolved = geometry(shape[1:3], window, strides, padding)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.integers(0, 3, shape) if ties else generator.normal(size=shape), dtype)
    dy = jnp.asarray(generator.normal(size=(shape[0], *resolved.output(shape[1:3], window), shape[3])), dtype)

    def wanted(kind):
        """In float64, as `reference` has it."""
        scale = [] if kind == "max_pool" else [1 / math.prod(window)]
        with jax.enable_x64(True):
            function = lambda x: getattr(reference, kind)(x, window, resolved, *scale)  # noqa: E731
            both = jax.jit(lambda x, dy: (lambda y, pull: (y, *pull(dy)))(*jax.vjp(function, x)))
            return [np.asarray(a) for a in both(*(jnp.asarray(np.asarray(a, np.float64)) for a in (x, dy)))]

    bound = 1e-6 if dtype == "float32" else 1e-2
    for kind, (y, dx) in found(window, resolved, x, dy).items():
        assert y.dtype == dx.dtype == dtype
        for ours, theirs in zip((y, dx), wanted(kind), strict=True):
            np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    check(CASES[case], "float32")


@pytest.mark.parametrize("case", ["LeNet-5", "Inception", "odd"])
def test_the_first_of_equals_has_the_gradient(case):
    check(CASES[case], "float32", ties=True)


@pytest.mark.parametrize("case", ["ResNet-50"])
def test_bfloat16(case):
    check(CASES[case], "bfloat16")


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_every_geometry(data):
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    window, strides = ((number(1, 3), number(1, 3)) for _ in range(2))
    padding = tuple((number(0, k - 1), number(0, k - 1)) for k in window)
    size = tuple(number(k, 8) for k in window)
    check(((number(1, 2), *size, 2), window, strides, padding), "float32", ties=True)


def test_sums_are_rounded_once():
    """256 + 1 + 1 + 1 is 259 in float32, and 256 if every sum is rounded to bfloat16."""
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16).at[0, 0, 0].set(256)
    assert tpu.sum_pool(x, (2, 2), geometry((2, 2), (2, 2), 2, "VALID"), 0.5) == jnp.bfloat16(129.5)


def test_what_is_not_finite():
    """A NaN is the maximum, and the first one has the gradient; of -inf alone the first that is not padding."""
    x = jnp.arange(36.0).reshape(1, 6, 6, 1).at[0, :2, :2].set(-jnp.inf)
    x = x.at[0, 4, 3].set(jnp.nan).at[0, 4, 4].set(jnp.nan).at[0, 2, 5].set(jnp.inf)
    window, resolved = (3, 3), geometry((6, 6), (3, 3), 3, ((1, 2), (1, 2)))  # windows of rows -1 to 1, 2 to 4, 5 to 7
    dy = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    both = found(window, resolved, x, dy)
    y, dx = (a[0, ..., 0] for a in both["max_pool"])
    np.testing.assert_array_equal(y, [[-jnp.inf, 10, 11], [25, jnp.nan, jnp.inf], [31, 34, 35]])
    wanted = np.zeros((6, 6))
    wanted[[0, 1, 1, 4, 4, 2, 5, 5, 5], [0, 4, 5, 1, 3, 5, 1, 4, 5]] = np.arange(1, 10)
    np.testing.assert_array_equal(dx, wanted)
    # Sums that do not see it are finite.
    finite = np.isfinite(both["sum_pool"][0][0, ..., 0])
    np.testing.assert_array_equal(finite, [[False, True, True], [True, False, False], [True, True, True]])
    _, spread = found(window, resolved, x, dy.at[0, 0, 1].set(jnp.inf))["sum_pool"]
    infinite = np.argwhere(~np.isfinite(spread[0, ..., 0]))
    np.testing.assert_array_equal(infinite, [(i, j) for i in (0, 1) for j in (2, 3, 4)])


def test_vmap_and_remat():
    shape, window, strides, padding = CASES["ResNet-50"]
    window, resolved = (window, window), geometry(shape[1:3], (window, window), strides, padding)
    x, dy = jax.random.normal(jax.random.key(0), shape), jnp.ones((2, *resolved.output(shape[1:3], window), 3))
    wanted = found(window, resolved, x, dy)
    with target.interpreted(True):  # the TPU's interpreter knows neither
        call = functools.partial(found, window, resolved)
        single = jax.vmap(lambda x, dy: call(x[None], dy[None]))(x, dy)
        again = jax.jit(jax.checkpoint(call))(x, dy)
    for ours in (jax.tree.map(lambda a: a[:, 0], single), again):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), ours, wanted)


def test_what_it_refuses():
    x, resolved = jnp.ones((1, 32, 32, 1)), geometry((32, 32), (2, 2), 2, "VALID")
    assert tpu.refuses(x, (2, 2), resolved) is None
    assert tpu.refuses(x.astype(jnp.float16), (2, 2), resolved) == "has no float16"
    assert tpu.refuses(x, (32, 32), resolved) == "has windows of up to 128 taps, not 1024"
