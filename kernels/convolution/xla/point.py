"""A kernel of one tap: a product of matrices, of all the pixels that it sees.

JAX derives a gradient from a product of four-dimensional arrays that copies one of them into another layout.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels.convolution.windows import Geometry, Pair, taps


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    x = _seen(geometry, x)
    return (x.reshape(-1, x.shape[3]) @ w[0, 0]).reshape(*x.shape[:3], -1)  # (N, H', W', K)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    dx = (dy.reshape(-1, dy.shape[3]) @ w[0, 0].T).reshape(*dy.shape[:3], -1)  # (N, H', W', C)
    sides = [
        (-low, n + low - s * (m - 1) - 1, s - 1)
        for n, m, s, (low, _) in zip(size, dy.shape[1:3], geometry.strides, geometry.padding, strict=True)
    ]
    return lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    x = _seen(geometry, x)
    return (x.reshape(-1, x.shape[3]).T @ dy.reshape(-1, dy.shape[3]))[None, None]


def _seen(geometry, x):
    """The pixels that the tap sees: (N, H', W', C)."""
    return next(taps(x, (1, 1), geometry))[1]
