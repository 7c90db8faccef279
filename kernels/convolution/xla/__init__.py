"""Convolution as a CPU computes it fast: by XLA's library of matrix products, and its loops.

All take and return float32 (or float64); the public function converts.
"""

import math
from types import ModuleType

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair
from kernels.convolution.xla import depthwise, direct, fourier, point, products, winograd

WIDE = 128  # channels on both sides, from which the transformations cost less than they save
FEW = 1024  # pixels of all outputs, up to which a product for each tap is faster than a convolution with a stride
LARGE = 81  # taps of a depthwise kernel, from which its Fourier transform is faster
BYTES = 1 << 29  # that the transformed images may take


def refuses(geometry: Geometry, x: jax.Array, w: jax.Array) -> None:
    """Nothing."""


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    if _grouped(geometry, w.shape[2]):
        return _over_groups(lambda one, x, w: forward(one, x, w), geometry, x, w)
    size = geometry.output(x.shape[1:3], w.shape[:2])
    return form(geometry, x.shape[0], size, w.shape).forward(geometry, x, w)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    if _grouped(geometry, w.shape[2]):
        return _over_groups(lambda one, dy, w: input_gradient(one, dy, w, size), geometry, dy, w)
    return form(geometry, dy.shape[0], dy.shape[1:3], w.shape).input_gradient(geometry, dy, w, size)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    channels = x.shape[3] // geometry.groups
    if _grouped(geometry, channels):
        return _over_groups(lambda one, x, dy: weight_gradient(one, x, dy, kernel), geometry, x, dy)
    w = (*kernel, channels, dy.shape[3])
    chosen = form(geometry, dy.shape[0], dy.shape[1:3], w)
    # Its products are of transposed matrices, which XLA's library computes at half the speed.
    chosen = direct if chosen is winograd and min(w[2:]) < 2 * WIDE else chosen
    return chosen.weight_gradient(geometry, x, dy, kernel)


def form(geometry: Geometry, images: int, size: Pair, w: tuple[int, ...]) -> ModuleType:
    """The module whose functions compute it, for outputs (images, *size, K) and a kernel (kh, kw, C / groups, K)."""
    strides, _, dilation, groups = geometry
    if groups > 1:
        return fourier if strides == (1, 1) and math.prod(w[:2]) >= LARGE else depthwise
    if w[:2] == (1, 1):
        return point
    if w[:2] == (3, 3) and strides != (1, 1) and min(w[2:]) >= 2 * WIDE and images * math.prod(size) <= FEW:
        return products
    plain = w[:2] == (3, 3) and strides == dilation == (1, 1)
    fits = images * math.prod(size) * (w[2] + w[3]) * 4 * winograd.TILE**2 <= BYTES * winograd.M**2
    return winograd if plain and fits and min(w[2:]) >= WIDE and min(size) >= winograd.M - 1 else direct


def _grouped(geometry, channels):
    return geometry.groups > 1 and channels > 1


def _over_groups(function, geometry, a, b):
    """One dense convolution a group; the last axes are those that groups divide."""
    groups, one = geometry.groups, geometry._replace(groups=1)
    parts = (jnp.split(operand, groups, axis=3) for operand in (a, b))
    return jnp.concatenate([function(one, *part) for part in zip(*parts, strict=True)], axis=3)
