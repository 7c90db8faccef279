"""The Hopper kernels, interpreted on a CPU with races detected, against XLA's convolution in float64.

Of the networks' layers, those that take another way through the kernels are among the quick tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import target
from kernels.convolution import hopper
from kernels.convolution.epilogue import ACTIVATIONS, Epilogue
from kernels.convolution.hopper import product, weights
from tests.kernels.convolution.cases import LAYERS, convolved, draw, formula, geometries, operands, wide
from tests.kernels.hopper import InterpretGPUParams, interpreting

NAMES = ["LeNet-5 9² 6→16 5×5", "AlexNet 9² 18→16 5×5 groups 2", "ResNet-50 11² 16→16 3×3 /2"]
CASES = {
    # x, w, strides, padding, dilation, groups
    "all taps become channels": ((2, 6, 7, 3), (3, 3, 3, 8), 1, "SAME", 1, 1),
    "taps of a row become channels": ((1, 11, 10, 3), (7, 7, 3, 8), 2, 3, 1, 1),
    "3x3": ((2, 7, 6, 40), (3, 3, 40, 72), 1, "SAME", 1, 1),
    "3x3, stride 2": ((2, 8, 7, 24), (3, 3, 24, 16), 2, "SAME", 1, 1),
    "chunks of channels": ((1, 4, 5, 72), (3, 1, 72, 8), 1, "VALID", 1, 1),
    "blocks of features": ((1, 5, 4, 24), (2, 2, 24, 136), 1, "VALID", 1, 1),
    "1x1": ((3, 7, 6, 24), (1, 1, 24, 40), 1, "SAME", 1, 1),
    "1x1, stride 2": ((2, 7, 6, 24), (1, 1, 24, 40), 2, "VALID", 1, 1),
    "odd channels": ((1, 5, 5, 21), (3, 3, 21, 19), 1, "SAME", 1, 1),
    "groups": ((2, 5, 6, 36), (3, 3, 18, 24), 1, "SAME", 1, 2),
    "dilation": ((1, 9, 8, 24), (3, 3, 24, 16), 1, "SAME", 2, 1),
    "stride and dilation": ((1, 11, 9, 24), (3, 2, 24, 16), (3, 2), 1, (2, 3), 1),
    "uneven padding": ((1, 6, 7, 24), (3, 3, 24, 16), 2, ((0, 1), (2, 0)), 1, 1),
    "far padding": ((1, 3, 4, 24), (2, 2, 24, 16), (1, 2), ((3, 0), (0, 2)), 1, 1),
    "stride beyond the kernel": ((1, 9, 8, 24), (2, 1, 24, 16), (3, 3), "VALID", 1, 1),
    "one pixel": ((3, 1, 1, 24), (3, 3, 24, 16), 1, "SAME", 1, 1),
    "depthwise": ((2, 7, 6, 72), (3, 3, 1, 72), 1, "SAME", 1, 72),
    "depthwise, stride 2": ((1, 8, 9, 24), (3, 3, 1, 24), 2, "SAME", 1, 24),
    "depthwise, dilation": ((1, 9, 8, 8), (3, 3, 1, 8), 1, "SAME", 2, 8),
    "depthwise, 7x7": ((1, 7, 9, 8), (7, 7, 1, 8), 1, "SAME", 1, 8),
    "depthwise, multiplier": ((1, 7, 6, 5), (3, 3, 1, 15), 2, ((1, 0), (0, 2)), 1, 5),
    "depthwise, one pixel": ((2, 1, 1, 8), (3, 3, 1, 8), 1, "SAME", 1, 8),
}
IN_FLOAT32 = ["taps of a row become channels", "3x3", "1x1", "depthwise, stride 2"]
# One rounding to bfloat16 is 2^-9 at most; two parts hold 16 bits of a float32, which a depthwise kernel has in full.
BOUNDS = {"bfloat16": 2.5e-3, "float32": 1.5e-5}


@pytest.fixture(autouse=True)
def interpreted(capsys):
    with interpreting(capsys):
        yield


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several boxes, and several of them for a block: the interpreter takes boxes of any size."""
    monkeypatch.setattr(product, "TILES", ((32, 64), (16, 64)))
    monkeypatch.setattr(weights, "CORES", 1)


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


def check(case, dtype):
    window, (x, w, dy) = operands(case, dtype)

    def expected(x, w, dy):
        y, pull = jax.vjp(lambda x, w: formula(window, x, w), x, w)
        return y, *pull(dy)

    found = (
        hopper.forward(window, x, w),
        hopper.input_gradient(window, dy, w, x.shape[1:3]),
        hopper.weight_gradient(window, x, dy, w.shape[:2]),
    )
    for ours, theirs in zip(found, wide(expected, x, w, dy), strict=True):
        assert ours.dtype == dtype and error(ours, theirs) < BOUNDS[dtype]


@pytest.mark.parametrize(
    "name", [name if name in NAMES else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
def test_layers(name):
    check(convolved(LAYERS[name], images=1), "bfloat16")


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    check(CASES[case], "bfloat16")


@pytest.mark.parametrize("case", IN_FLOAT32)
def test_float32(case):
    check(CASES[case], "float32")


VECTORS, ALL = ("bias", "scale", "shift"), "bias scale shift residual gelu"


@pytest.mark.parametrize(
    "case, asked",
    [("1x1", asked) for asked in ("bias relu", "bias scale", "shift", "residual", *ACTIVATIONS)]
    + [(case, ALL) for case in ("3x3", "groups", "odd channels", "depthwise, stride 2", "all taps become channels")],
)
def test_the_epilogue(case, asked):
    check_epilogue(case, asked, "bfloat16", BOUNDS["bfloat16"])


@pytest.mark.parametrize("case", ["1x1", "depthwise, stride 2"])
def test_the_epilogue_in_float32(case):
    check_epilogue(case, ALL, "float32", BOUNDS["float32"])


def check_epilogue(case, asked, dtype, bound):
    window, (x, w, residual) = operands(CASES[case], dtype)
    asked = asked.split()
    extra = {name: draw(seed, w.shape[3:], dtype) for seed, name in enumerate(VECTORS) if name in asked}
    extra |= {"residual": residual} if "residual" in asked else {}
    activation = next((name for name in asked if name in ACTIVATIONS), None)

    def expected(x, w, *values):
        given = dict(zip(extra, values, strict=True))
        bias, scale, shift = (given.get(name, jnp.full(w.shape[3:], name == "scale", x.dtype)) for name in VECTORS)
        y = (formula(window, x, w) + bias[None, None, None]) * scale[None, None, None] + shift[None, None, None]
        y = y + given["residual"] if "residual" in given else y
        return ACTIVATIONS[activation](y) if activation else y

    found = hopper.forward(window, x, w, Epilogue(**extra, activation=activation))
    assert found.dtype == dtype and error(found, wide(expected, x, w, *extra.values())) < bound


@settings(max_examples=2, deadline=None, derandomize=True)
@given(axes=geometries(), images=st.integers(1, 2), depthwise=st.booleans())
def test_every_geometry(axes, images, depthwise):
    """Whatever the size, kernel, stride, padding and dilation of each axis."""
    kernel, strides, dilation, padding, size = axes
    shape, groups = (*kernel, 1 if depthwise else 24, 24 if depthwise else 8), 24 if depthwise else 1
    check(((images, *size, 24), shape, strides, padding, dilation, groups), "bfloat16")


@pytest.mark.parametrize(
    "case, dtype",
    [(case, "bfloat16") for case in ("3x3, stride 2", "1x1", "groups", "odd channels", "depthwise")]
    + [("3x3", "float32")],
)
def test_infinity_stays_where_it_is_seen(case, dtype):
    """An infinite channel of one pixel: outputs whose windows, or groups, do not have it are as without."""
    window, (x, w, _) = operands(CASES[case], dtype)
    infinite = x.at[0, 2, 3, -1].set(jnp.inf)
    seen = formula(window, jnp.isinf(infinite).astype(dtype), jnp.ones_like(w)) > 0
    assert seen.any() and not seen.all()
    ours, theirs = (np.asarray(hopper.forward(window, x, w), np.float32) for x in (infinite, x))
    np.testing.assert_array_equal(ours[~seen], theirs[~seen])
    assert not np.isfinite(ours[seen]).any()


def test_nothing_is_read_that_was_not_written():
    """Memory is NaN until then; what TMA reads beyond an end is 0 and not NaN, so that boxes end with images here."""
    with target.interpreted(InterpretGPUParams(detect_races=True, uninitialized_memory="nan")):
        window, (x, w, dy) = operands(((1, 8, 8, 64), (1, 1, 64, 64), 1, "VALID", 1, 1), "bfloat16")
        found = hopper.forward(window, x, w), hopper.weight_gradient(window, x, dy, (1, 1))
        assert all(np.isfinite(np.asarray(y, np.float32)).all() for y in found)


def test_the_weight_gradient_is_deterministic(monkeypatch):
    monkeypatch.setattr(weights, "CORES", 8)  # pieces of the pixels
    window, (x, w, dy) = operands(CASES["3x3"], "bfloat16")
    first, second = (hopper.weight_gradient(window, x, dy, w.shape[:2]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert error(first, wide(lambda x, w, dy: jax.vjp(lambda w: formula(window, x, w), w)[1](dy)[0], x, w, dy)) < 2.5e-3


def test_what_it_refuses(monkeypatch):
    window, (x, w, _) = operands(CASES["3x3"], "bfloat16")
    assert hopper.refuses(window, x, w) is None
    assert hopper.refuses(window, x.astype(jnp.float16), w) == "has no float16"
    window, (x, w, _) = operands(((1, 10, 10, 4), (2, 2, 1, 4), 9, "VALID", 1, 4), "bfloat16")
    assert hopper.refuses(window, x, w).startswith("has no depthwise kernels of 2 x 2")
    monkeypatch.setattr(target, "interpreter", lambda: None)
    monkeypatch.setattr(target, "device", lambda: ("cuda", "NVIDIA A100-SXM4-80GB"))
    assert hopper.refuses(window, x, w).endswith("and this is NVIDIA A100-SXM4-80GB")
