"""Pooling as elementwise operations on strided slices, which XLA fuses forward and backward."""

import functools
import operator

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps


def max_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """As reference.max_pool."""
    return _pool(lambda first, second: jnp.where(first >= second, first, second), x, window, geometry, -jnp.inf)


def average_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """As reference.average_pool."""
    total = _pool(operator.add, x.astype(jnp.float32), window, geometry, 0.0)
    return (total / (window[0] * window[1])).astype(x.dtype)


def _pool(combine, x, window, geometry, fill):
    """Combines each window's values from left to right, then from top to bottom; disjoint windows' all at once."""
    if window == geometry.strides:
        return functools.reduce(combine, (tap for _, tap in taps(x, window, geometry, fill)))
    (kh, kw), ((sh, sw), (rows, columns), *_) = window, geometry
    x = functools.reduce(combine, (tap for _, tap in taps(x, (1, kw), Geometry((1, sw), ((0, 0), columns)), fill)))
    return functools.reduce(combine, (tap for _, tap in taps(x, (kh, 1), Geometry((sh, 1), (rows, (0, 0))), fill)))
