"""The TPU's kernels in Pallas's interpreter, which looks for races and for reads of what was never written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from kernels import target
from kernels.convolution import tpu
from kernels.convolution.epilogue import ACTIVATIONS, Epilogue
from kernels.convolution.tpu import channels, tiles
from kernels.convolution.windows import geometry
from tests.kernels.convolution.cases import LAYERS, convolved, draw, formula, geometries, operands, wide

CASES = {name: convolved(layer) for name, layer in LAYERS.items()} | {
    "blocks of images": ((9, 7, 7, 17), (3, 3, 17, 18), 1, "SAME", 1, 1),
    "strips that are not whole": ((1, 50, 3, 17), (3, 3, 17, 5), 1, "SAME", 1, 1),
    "the whole image": ((2, 3, 3, 20), (3, 3, 20, 24), 1, "VALID", 1, 1),
    "neighbours that overlap": ((2, 6, 7, 40), (2, 7, 40, 3), (1, 2), "SAME", 1, 1),
    "groups": ((2, 6, 6, 24), (3, 3, 3, 24), 2, "SAME", 1, 8),
    "multiplier": ((2, 7, 6, 5), (3, 3, 1, 15), 2, "SAME", 1, 5),
    "dilation": ((2, 9, 9, 18), (3, 3, 18, 20), 1, "SAME", 2, 1),
    "dilation and stride": ((2, 11, 9, 18), (3, 2, 18, 20), (3, 2), 1, (2, 3), 1),
    "uneven": ((3, 7, 6, 17), (3, 3, 17, 18), 2, ((0, 1), (1, 0)), 1, 1),
    "far padding": ((2, 4, 5, 17), (2, 2, 17, 18), (1, 2), ((3, 2), (0, 4)), 1, 1),
    "stride beyond the kernel": ((2, 9, 8, 17), (2, 1, 17, 18), (3, 3), "VALID", 1, 1),
    "one pixel": ((9, 1, 1, 17), (3, 3, 17, 18), 1, "SAME", 1, 1),
}
POINT, STRIDE, DEPTHWISE = "ResNet-50 5² 16→18 1×1", "ResNet-50 11² 16→16 3×3 /2", "MobileNet 7² 18→18 3×3 depthwise"
FEW = ("LeNet-5 9² 6→16 5×5", STRIDE, DEPTHWISE, "groups", "multiplier")
# Sums of up to 600 products, which drift by a few 2^-24; rounding to bfloat16 is 2^-9 at most.
BOUNDS = {"float32": 4e-7, "bfloat16": 2.5e-3}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several steps along each axis, several products a step, of which the last are not whole."""
    monkeypatch.setattr(tiles, "ROWS", 128)
    monkeypatch.setattr(tiles, "FEW", 96)
    monkeypatch.setattr(tiles, "BLOCK", 1 << 17)


@pytest.fixture(autouse=True)
def interpreted(request):
    pltpu.reset_tpu_interpret_mode_state()
    # The detector takes its time: bfloat16 has the same accesses as float32, and many layers those of a few.
    case = request.node.callspec.params.get("case") if hasattr(request.node, "callspec") else None
    detect = "bfloat16" not in request.node.name and (case in FEW or case not in LAYERS)
    with target.interpreted(pltpu.InterpretParams(detect_races=detect, uninitialized_memory="nan")):
        yield
    races = interpret_pallas_call.races
    assert races is None or not races.races_found


def close(ours, theirs, bound):
    assert ours.shape == theirs.shape
    error = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
    assert error <= bound * np.linalg.norm(theirs)  # of windows that see padding alone, both are 0


@functools.partial(jax.jit, static_argnums=0)
def found(window, x, w, dy):
    """y, dx, dw."""
    gradient = tpu.input_gradient(window, dy, w, x.shape[1:3])
    return tpu.forward(window, x, w), gradient, tpu.weight_gradient(window, x, dy, w.shape[:2])


def expected(window, x, w, dy):
    y, pull = jax.vjp(lambda x, w: formula(window, x, w), x, w)
    return y, *pull(dy)


def check(case, dtype):
    window, arrays = operands(case, dtype)
    wanted = wide(functools.partial(expected, window), *arrays)
    for ours, theirs in zip(found(window, *arrays), wanted, strict=True):
        assert ours.dtype == dtype
        close(ours, theirs, BOUNDS[dtype])


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case):
    check(CASES[case], "float32")


@pytest.mark.parametrize("case", FEW)
def test_bfloat16(case):
    check(CASES[case], "bfloat16")


@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_of_channels(monkeypatch, groups):
    """Several blocks of inputs, added up in float32, and of outputs, of which the last are not whole."""
    monkeypatch.setattr(channels, "WEIGHTS", 1)
    check(((2, 3, 3, 150 * groups), (2, 1, 150, 140 * groups), 1, "SAME", 1, groups), "float32")


def test_blocks_of_depthwise_channels():
    check(((2, 4, 4, 150), (3, 3, 1, 150), 1, "SAME", 1, 150), "float32")


ROWS, ALL = ("bias", "scale", "shift"), "bias scale shift residual gelu"


@pytest.mark.parametrize(
    "case, asked",
    [(POINT, asked) for asked in ("bias", "scale", "bias scale", "shift", "residual", *ACTIVATIONS, ALL)]
    + [(STRIDE, ALL), (DEPTHWISE, ALL)],
)
def test_the_epilogue(case, asked):
    window, (x, w, residual) = operands(CASES[case], "float32")
    asked = asked.split()
    extra = {name: draw(seed, w.shape[3:], "float32") for seed, name in enumerate(ROWS) if name in asked}
    extra |= {"residual": residual} if "residual" in asked else {}
    activation = next((name for name in asked if name in ACTIVATIONS), None)

    def expected(x, w, *values):
        given = dict(zip(extra, values, strict=True))
        bias, scale, shift = (given.get(name, jnp.full(w.shape[3:], name == "scale", x.dtype)) for name in ROWS)
        y = (formula(window, x, w) + bias[None, None, None]) * scale[None, None, None] + shift[None, None, None]
        y = y + given["residual"] if "residual" in given else y
        return ACTIVATIONS[activation](y) if activation else y

    wanted = wide(expected, x, w, *extra.values())
    found = jax.jit(lambda x, w, extra: tpu.forward(window, x, w, Epilogue(**extra, activation=activation)))
    close(found(x, w, extra), wanted, 1e-6)


def test_the_epilogue_is_in_float32():
    """Of bfloat16 too: only the result is rounded."""
    window, (x, w, residual) = operands(CASES[POINT], "bfloat16")
    bias = draw(3, w.shape[3:], "bfloat16")
    found = tpu.forward(window, x, w, Epilogue(bias=bias, residual=residual, activation="relu"))
    wanted = wide(lambda x, w, b, r: jax.nn.relu(formula(window, x, w) + b[None, None, None] + r), x, w, bias, residual)
    assert found.dtype == jnp.bfloat16
    close(found, wanted, BOUNDS["bfloat16"])


@settings(max_examples=4, deadline=None)
@given(axes=geometries(), images=st.integers(1, 2))
def test_every_geometry(axes, images):
    """Whatever the size, kernel, stride, padding and dilation of each axis."""
    kernel, strides, dilation, padding, size = axes
    check(((images, *size, 17), (*kernel, 17, 2), strides, padding, dilation, 1), "float32")


def test_the_weight_gradient_is_deterministic():
    window, (x, w, dy) = operands(CASES["blocks of images"], "float32")
    first, second = (tpu.weight_gradient(window, x, dy, w.shape[:2]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_on_a_mesh():
    """The batch divided over two devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    window, (x, w, _) = operands(CASES[POINT], "float32")
    along = jax.sharding.PartitionSpec("data")
    call = lambda x, w: tpu.forward(window, x, jax.lax.pcast(w, "data", to="varying"))  # noqa: E731
    divided = jax.shard_map(call, mesh=mesh, in_specs=(along, jax.sharding.PartitionSpec()), out_specs=along)
    close(jax.jit(divided)(x, w), wide(lambda x, w: formula(window, x, w), x, w), BOUNDS["float32"])


@pytest.mark.parametrize("case", ["neighbours that overlap", "strips that are not whole", *FEW])
def test_an_inf_stays_within_windows(case):
    """An inf at a corner of x or of dy is in all results that see it, and in no other: padding is not 0 inf = NaN.

    But groups that are merged for the matrix unit see each other's pixels, and all taps of dw those of their channel.
    """
    window, (x, w, dy) = operands(CASES[case], "float32")
    merged = window.groups > 1 and w.shape[2] > 1
    once = [np.ones(a.shape) for a in (x, w, dy)]
    for which, place in ((0, (0, 0, -1, 0)), (2, (0, -1, 0, -1))):
        arrays, counted = [x, w, dy], list(once)
        arrays[which] = arrays[which].at[place].set(jnp.inf)
        counted[which] = np.zeros_like(once[which])
        counted[which][place] = 1
        # How often each result sees it; that of the other operand not at all.
        y, dx, dw = (a > 0 for a in wide(functools.partial(expected, window), *counted))
        y, dx = (y & (which == 0), dx & (which == 2))
        for ours, seen, is_dw in zip(found(window, *arrays), (y, dx, dw), (False, False, True), strict=True):
            ours = ~np.isfinite(ours)
            assert (ours >= seen).all() and not ours.all()
            may = seen.any((0, 1), keepdims=True) if is_dw else seen.any(3, keepdims=True) if merged else seen
            assert (ours <= may).all()


def test_vmap_and_remat():
    window, (x, w, dy) = operands(CASES[STRIDE], "float32")
    with target.interpreted(True):  # the TPU's interpreter knows neither
        single = jax.vmap(lambda x, dy: found(window, x[None], w, dy[None]))(x, dy)
        kernels = jax.vmap(lambda w: tpu.forward(window, x, w))(jnp.stack([w, 2 * w]))
        again = jax.jit(jax.checkpoint(functools.partial(found, window)))(x, w, dy)
    wanted = wide(functools.partial(expected, window), x, w, dy)
    close(single[0][:, 0], wanted[0], BOUNDS["float32"])
    close(single[1][:, 0], wanted[1], BOUNDS["float32"])
    close(single[2].sum(0), wanted[2], BOUNDS["float32"])
    close(kernels[1], 2 * wanted[0], BOUNDS["float32"])
    for ours, theirs in zip(again, wanted, strict=True):
        close(ours, theirs, BOUNDS["float32"])


def test_what_it_refuses():
    window, (x, w, _) = operands(CASES["VGG-16 7² 18→18 3×3"], "float32")
    assert tpu.refuses(window, x, w) is None
    assert tpu.refuses(window, x.astype(jnp.float16), w) == "has no float16"
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 65, 65, 512), (3, 3, 512, 512)))
    assert "has no room in VMEM" in tpu.refuses(geometry((65, 65), (3, 3), 1, "SAME", 24), x, w)
    assert tpu.refuses(geometry((65, 65), (3, 3), 1, "SAME"), x, w) is None
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 65, 65, 64), (31, 31, 1, 64)))
    assert tpu.refuses(geometry((65, 65), (31, 31), 1, "SAME", 1, 64), x, w) == "has windows of up to 128 taps, not 961"
