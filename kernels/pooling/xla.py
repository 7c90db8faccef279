"""Pooling as elementwise operations on slices, without padding; forward and backward few loops that XLA fuses.

The gradient of the maximum takes two steps, as in the kernels: which tap was each window's first maximum, a byte for
each; and for each input the sum over the windows that it is in, of those whose first maximum it was. Only those bytes
are kept from the forward pass.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from kernels.convolution.windows import Geometry, Pair, wide
from kernels.pooling import linear


def max_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """As reference.max_pool."""
    return _at(window, geometry, x, *_maxima(jax.lax.stop_gradient(x), window, geometry))


def sum_pool(x: jax.Array, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """As reference.sum_pool."""
    return (scale * linear.collect(x.astype(wide(x.dtype)), window=window, geometry=geometry)).astype(x.dtype)


def _maxima(x, window, geometry):
    """The maximum of each window, and the number kw i + j of the first tap (i, j) that has it."""
    numbers = jnp.zeros_like(x, jnp.int8 if math.prod(window) <= np.iinfo(np.int8).max else jnp.int32)

    def first(seen):
        pairs = ((value, number + (window[1] * i + j)) for (i, j), (value, number) in seen)
        return functools.reduce(_first_maximum, pairs)

    y, number = linear.fold(first, (x, numbers), window, geometry)
    return y, jax.lax.optimization_barrier(number)  # or it is computed anew for every window that sees an input


def _first_maximum(one, other):
    """Of two pairs (value, number) the one with the larger value, or with a NaN; of equals the first."""
    keep = (one[0] >= other[0]) | jnp.isnan(one[0])
    return tuple(jnp.where(keep, a, b) for a, b in zip(one, other, strict=True))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _at(window, geometry, x, y, first):
    """y, as a function of x: its values at these taps."""
    return y


@_at.defjvp
def _at_jvp(window, geometry, primals, tangents):
    return _at(window, geometry, *primals), linear.collect(tangents[0], primals[2], window=window, geometry=geometry)
