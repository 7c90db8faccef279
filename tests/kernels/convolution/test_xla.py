"""The forms for a CPU, each against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.convolution import reference
from kernels.convolution.networks import resnet18
from kernels.convolution.windows import geometry
from kernels.convolution.xla import depthwise, direct, form, fourier, phases, point, products, winograd
from tests.kernels.convolution.cases import geometries, operands, wide

# Float32's rounding, and what Winograd's points lose of it.
BOUNDS = {direct: 1e-6, products: 1e-6, point: 1e-6, depthwise: 1e-6, winograd: 6e-6, fourier: 1e-6}


def check(module, x, w, strides=1, padding="SAME", dilation=1, groups=1):
    """Values and both gradients."""
    window, (x, w, dy) = operands((x, w, strides, padding, dilation, groups))

    @jax.jit
    def compute(x, w, dy):
        dx = module.input_gradient(window, dy, w, x.shape[1:3])
        return module.forward(window, x, w), dx, module.weight_gradient(window, x, dy, w.shape[:2])

    def expected(x, w, dy):
        y, pull = jax.vjp(lambda x, w: reference.forward(window, x, w), x, w)
        return y, *pull(dy)

    for ours, theirs in zip(compute(x, w, dy), wide(expected, x, w, dy), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == jnp.float32
        assert np.linalg.norm(np.asarray(ours, np.float64) - theirs) <= BOUNDS[module] * np.linalg.norm(theirs)


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (6, 3), (1, 1), (13, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 2, ((0, 1), (3, 0)), 5])
@pytest.mark.parametrize("pixels", [0, 1024])
def test_winograd(monkeypatch, pixels, size, padding):
    """Tiles that are whole and tiles that are not, large and small."""
    monkeypatch.setattr(winograd, "PIXELS", pixels)
    if padding == "VALID" and min(size) < 3:
        pytest.skip("there is no output")
    padding = ((2, 1), (1, 3)) if padding == ((0, 1), (3, 0)) and min(size) < 3 else padding
    check(winograd, (2, *size, 20), (3, 3, 20, 18), padding=padding)


@pytest.mark.parametrize(
    "size, kernel, padding, dilation, features",
    [
        ((9, 8), (5, 3), "SAME", 1, 4),
        ((9, 8), (5, 3), "VALID", (1, 2), 8),
        ((4, 5), (15, 15), "SAME", 1, 4),
        ((7, 6), (3, 2), ((0, 4), (3, 1)), 2, 12),
    ],
)
def test_fourier(size, kernel, padding, dilation, features):
    check(fourier, (3, *size, 4), (*kernel, 1, features), 1, padding, dilation, groups=4)


@settings(max_examples=36, deadline=None)
@given(axes=geometries(), images=st.integers(1, 3), module=st.sampled_from([direct, products, depthwise]))
@example(axes=((3, 1), (1, 3), (2, 1), ((3, 3), (0, 0)), (1, 9)), images=1, module=direct)
@example(axes=((2, 2), (3, 3), (1, 1), ((0, 1), (1, 0)), (4, 4)), images=2, module=products)
def test_every_geometry(axes, images, module):
    """Whatever the size, kernel, stride, padding and dilation of each axis: padding beyond the reach too."""
    kernel, strides, dilation, padding, size = axes
    groups, w = (6, (*kernel, 1, 12)) if module is depthwise else (1, (*kernel, 17, 18))
    check(module, (images, *size, 6 if groups > 1 else 17), w, strides, padding, dilation, groups)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (5, 4)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("dilation", [(1, 2), 3])
def test_dilation(dilation, strides, size):
    """Of taps too that see nothing but padding, at either side."""
    check(direct, (3, *size, 17), (3, 3, 17, 18), strides, "SAME", dilation)
    check(direct, (3, *size, 17), (2, 2, 17, 18), strides, ((0, 3), (4, 3)), dilation)


def test_a_dilated_gradient_computes_no_columns_between_the_taps():
    """One convolution for each column of the kernel, of one column each."""
    window, (x, w, dy) = operands(((2, 16, 16, 17), (3, 3, 17, 18), 1, "SAME", 4, 1))
    program = str(jax.make_jaxpr(lambda x, dy: direct.weight_gradient(window, x, dy, (3, 3)))(x, dy))
    assert program.count("f32[1,3,17,18] = conv_general_dilated") == 3


@pytest.mark.parametrize("strides", [1, 2, (3, 1)])
@pytest.mark.parametrize("padding", ["SAME", 1, ((2, 0), (0, 3))])
def test_one_tap(strides, padding):
    check(point, (2, 7, 6, 5), (1, 1, 5, 4), strides, padding)


@pytest.mark.parametrize("column", [0, 1, 7, 10, 12])
def test_an_infinity_stays_with_the_taps_that_see_it(column):
    """In columns that make up whole blocks, and in those that are left."""
    window, (x, w, dy) = operands(((1, 5, 13, 2), (3, 3, 1, 2), 1, "VALID", 1, 2))
    found = depthwise.weight_gradient(window, x.at[:, :, column].set(jnp.inf), dy, w.shape[:2])
    seen = [0 <= column - j < dy.shape[2] for j in range(3)]
    np.testing.assert_array_equal(np.isfinite(found).all((0, 2, 3)), np.logical_not(seen))


def test_a_depthwise_gradient_does_not_compute_its_cotangent_anew():
    """What makes it stays outside the condition."""
    window, (x, w, _) = operands(((2, 16, 16, 8), (3, 3, 1, 8), 1, "SAME", 1, 8))
    gradient = jax.jit(lambda x, w: depthwise.weight_gradient(window, x, depthwise.forward(window, x, w), (3, 3)))
    assert "conditional(" in gradient.lower(x, w).compile().as_text()


@pytest.mark.parametrize("rows", [1, 3, 4, 17])
def test_sums_of_any_length(rows):
    """More and fewer terms than are added up in one loop."""
    check(depthwise, (3, rows, 40, 4), (1, 1, 1, 4), groups=4)


def test_the_transformed_kernels_of_few_pixels_are_not_kept_at_once():
    """Of a call of the forward and both backward passes, temporaries are those of one: 16 times the channels."""
    window, (x, w, _) = operands(((8, 4, 4, 256), (3, 3, 256, 256), 1, "SAME", 1, 1))

    def passes(x, w):
        y = winograd.forward(window, x, w)
        return winograd.input_gradient(window, y, w, (4, 4)), winograd.weight_gradient(window, x, y, (3, 3))

    temporaries = jax.jit(passes).lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 1.5 * 16 * 256**2 * 4


def test_what_is_computed_how():
    """By the shape alone: Winograd's for wide 3x3 layers without a stride, if its tiles fit."""
    names = {}
    for layer in resnet18():
        x, w = layer.shapes(32)
        window = geometry(x[1:3], w[:2], layer.strides, layer.padding)
        names[str(layer)] = form(window, 32, window.output(x[1:3], w[:2]), w).__name__.rsplit(".", 1)[-1]
    assert names["16² 128→128 3×3"] == names["4² 512→512 3×3"] == "winograd"
    assert names["32² 3→64 3×3"] == names["16² 128→256 3×3 /2"] == "direct" and names["8² 256→512 1×1 /2"] == "point"
    assert names["8² 256→512 3×3 /2"] == "products"
    window = geometry((56, 56), (3, 3), 2, "SAME")
    assert form(window, 32, (28, 28), (3, 3, 256, 256)) is direct
    window = geometry((224, 224), (3, 3), 1, "SAME")
    assert form(window, 32, (224, 224), (3, 3, 128, 128)) is direct
    assert form(window._replace(groups=8), 1, (224, 224), (3, 3, 1, 8)) is depthwise
    assert form(window._replace(groups=8), 1, (224, 224), (31, 31, 1, 8)) is fourier
    assert form(window._replace(groups=8, strides=(2, 2)), 1, (112, 112), (31, 31, 1, 8)) is depthwise


def test_phases_of_a_stride_beyond_the_kernel():
    """Some inputs that no window sees."""
    window = geometry((7, 7), (1, 2), 3, "VALID")
    views = list(phases.views(window, jnp.ones((1, 3, 2, 1)), (1, 2), (7, 7)))
    assert [len(v) for v in views] == [1, 1, 0, 0, 0, 0, 0, 0, 0]
