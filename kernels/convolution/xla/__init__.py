"""Convolution as a CPU computes it fast: by XLA's library of matrix products, and its loops.

All take and return float32 (or float64); the public function converts.
"""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair
from kernels.convolution.xla import depthwise, direct, point


def refuses(geometry: Geometry, x: jax.Array, w: jax.Array) -> None:
    """Nothing."""


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    if _grouped(geometry, w.shape[2]):
        return _over_groups(lambda one, x, w: forward(one, x, w), geometry, x, w)
    return form(geometry, w.shape).forward(geometry, x, w)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    if _grouped(geometry, w.shape[2]):
        return _over_groups(lambda one, dy, w: input_gradient(one, dy, w, size), geometry, dy, w)
    return form(geometry, w.shape).input_gradient(geometry, dy, w, size)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    channels = x.shape[3] // geometry.groups
    if _grouped(geometry, channels):
        return _over_groups(lambda one, x, dy: weight_gradient(one, x, dy, kernel), geometry, x, dy)
    return form(geometry, (*kernel, channels, dy.shape[3])).weight_gradient(geometry, x, dy, kernel)


def form(geometry: Geometry, w: tuple[int, ...]):
    """The module whose functions compute this."""
    if geometry.groups > 1:
        return depthwise
    return point if w[:2] == (1, 1) else direct


def _grouped(geometry, channels):
    return geometry.groups > 1 and channels > 1


def _over_groups(function, geometry, a, b):
    """One dense convolution a group; the last axes are those that groups divide."""
    groups, one = geometry.groups, geometry._replace(groups=1)
    parts = (jnp.split(operand, groups, axis=3) for operand in (a, b))
    return jnp.concatenate([function(one, *part) for part in zip(*parts, strict=True)], axis=3)
