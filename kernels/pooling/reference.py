"""Pooling as it is written down: every window's values, and their first maximum or their sum."""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps, wide


def max_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """y = x at the first position of each window's maximum, which padding is not."""
    values = _values(x, window, geometry, -jnp.inf)
    inside = _values(jnp.ones_like(x, bool), window, geometry, 0.0)
    first = jnp.maximum(values.argmax(0), inside.argmax(0))  # the latter only of -inf alone
    return jnp.take_along_axis(values, first[None], axis=0)[0]


def sum_pool(x: jax.Array, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """y = scale times the sum over each window."""
    return (scale * _values(x, window, geometry, 0.0).sum(0, dtype=wide(x.dtype))).astype(x.dtype)


def _values(x, window, geometry, fill):
    return jnp.stack([tap for _, tap in taps(x, window, geometry, fill)])  # (kh kw, N, H', W', C)
