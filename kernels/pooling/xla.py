"""Pooling as elementwise operations on strided slices, which XLA fuses forward and backward."""

import functools
import operator

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps, wide


def max_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """As reference.max_pool."""
    return _pool(_first_maximum, x, window, geometry, -jnp.inf)


def sum_pool(x: jax.Array, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """As reference.sum_pool."""
    return (scale * _pool(operator.add, x.astype(wide(x.dtype)), window, geometry, 0.0)).astype(x.dtype)


def _first_maximum(first, second):
    return jnp.where((first >= second) | jnp.isnan(first), first, second)


def _pool(combine, x, window, geometry, fill):
    """Combines each window's values from left to right, then from top to bottom; disjoint windows' all at once."""
    if window == geometry.strides:
        return functools.reduce(combine, (tap for _, tap in taps(x, window, geometry, fill)))
    (kh, kw), ((sh, sw), (rows, columns), *_) = window, geometry
    x = functools.reduce(combine, (tap for _, tap in taps(x, (1, kw), Geometry((1, sw), ((0, 0), columns)), fill)))
    return functools.reduce(combine, (tap for _, tap in taps(x, (kh, 1), Geometry((sh, 1), (rows, (0, 0))), fill)))
