"""What is asked of a backend: what shapes its program, and its arrays."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from kernels.attention.masks import Band, Mask


class Request(NamedTuple):
    """What is known when the program is compiled: the factor on q k, the cap c of c tanh(s / c), the band, dropout."""

    scale: float
    soft_cap: float | None
    band: Band
    dropout_rate: float


class Arrays(NamedTuple):
    """Inputs: query (B, T, N, D), key and value (B, S, K, D) with N a multiple of K, bias broadcastable to (B, N, T, S)
    or None, the Mask, and two seeds for dropout or None.
    """

    query: Any
    key: Any
    value: Any
    bias: Any
    mask: Mask
    seeds: Any


def wide(dtype):
    """The dtype of sums for inputs of this dtype."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
