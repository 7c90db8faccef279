"""Layers of networks made small, for tests in interpreters and of other slow ways to compute a convolution; and what
those tests share.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kernels.convolution.networks import NETWORKS, Layer
from kernels.convolution.windows import geometry


def small(layer: Layer) -> Layer:
    """The same kernel, stride, padding, dilation and kind of groups on fewer pixels and channels."""
    least = layer.dilation * (layer.kernel - 1) + 1
    size = min(layer.size, least + 4 * layer.strides + layer.size % layer.strides)
    depthwise = layer.groups == layer.channels > 1
    few = lambda n: n if n <= 16 else (16 if n % 128 == 0 else 18)  # noqa: E731
    channels, features = few(layer.channels), few(layer.features)
    return layer._replace(
        size=size, channels=channels, features=features, groups=channels if depthwise else layer.groups
    )


# Distinct ones among what is left of the layers.
LAYERS = {}
for _network, _layers in NETWORKS.items():
    for _layer in dict.fromkeys(map(small, _layers)):
        if _layer not in LAYERS.values():
            LAYERS[f"{_network} {_layer}"] = _layer


def convolved(layer: Layer, images: int = 2) -> tuple:
    """x, w, strides, padding, dilation, groups; of a transposed layer, those of the convolution that it transposes."""
    shape, kernel = layer.shapes(images)
    if layer.transposed:
        size = layer.strides * layer.size
        shape, kernel = (images, size, size, layer.features), (*kernel[:2], layer.features, layer.channels)
    return shape, kernel, *layer.options.values()


def draw(seed: int, shape: tuple, dtype="float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def operands(case: tuple, dtype="float32") -> tuple:
    """The geometry, and x, w and dy, of x, w, strides, padding, dilation and groups."""
    shape, kernel, strides, padding, dilation, groups = case
    window = geometry(shape[1:3], kernel[:2], strides, padding, dilation, groups)
    output = (shape[0], *window.output(shape[1:3], kernel[:2]), kernel[3])
    return window, [draw(seed, shape, dtype) for seed, shape in enumerate((shape, kernel, output))]


def formula(window, x, w):
    """XLA's own, in the operands' precision; the formula as it is written compiles for longer."""
    strides, padding, dilation, groups = window
    more = {"rhs_dilation": dilation, "feature_group_count": groups, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return jax.lax.conv_general_dilated(x, w, strides, padding, **more)


def wide(function, *arrays):
    """function(*arrays) in float64, as NumPy's."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*(jnp.asarray(np.asarray(a, np.float64)) for a in arrays)))


@st.composite
def geometries(draw_from) -> tuple:
    """Kernel, strides, dilation, padding and size of each axis, with padding beyond the kernel's reach too."""
    number = lambda low, high: draw_from(st.integers(low, high))  # noqa: E731
    kernel, strides, dilation = ((number(1, 3), number(1, 3)) for _ in range(3))
    padding = tuple((number(0, 3), number(0, 3)) for _ in range(2))
    size = tuple(number(max(d * (k - 1) + 1 - sum(p), 1), 9) for d, k, p in zip(dilation, kernel, padding, strict=True))
    return kernel, strides, dilation, padding, size
