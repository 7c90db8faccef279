"""A dense convolution as a product of matrices for each tap, of all the pixels that it sees: for few pixels and many
channels, of which XLA's library makes little in a convolution with a stride, and zeros in its gradient.
"""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps
from kernels.convolution.xla import phases


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    y = sum(_rows(tap) @ w[i, j] for (i, j), tap in taps(x, w.shape[:2], geometry))
    return y.reshape(x.shape[0], *geometry.output(x.shape[1:3], w.shape[:2]), -1)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    shape = (dy.shape[0], *(-(-n // s) for n, s in zip(size, geometry.strides, strict=True)), w.shape[2])
    parts = []
    for views in phases.views(geometry, dy, w.shape[:2], size):
        terms = [_rows(view) @ w[i, j].T for (i, j), view in views]
        parts.append(sum(terms).reshape(shape) if terms else jnp.zeros(shape, dy.dtype))
    return phases.interleave(parts, geometry.strides, size)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    dw = jnp.stack([_rows(tap).T @ _rows(dy) for _, tap in taps(x, kernel, geometry)])
    return dw.reshape(*kernel, x.shape[3], dy.shape[3])


def _rows(a):
    """(N, H, W, C) as (N H W, C)."""
    return a.reshape(-1, a.shape[3])
