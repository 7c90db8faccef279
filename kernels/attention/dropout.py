"""Dropout drawn from a counter: the same bits in every backend, forward and backward, with nothing kept in memory."""

import jax
import jax.numpy as jnp

_GOLDEN = 0x9E3779B9  # 2^32 / the golden ratio


def seeds(rng: jax.Array) -> jax.Array:
    """Two numbers from a key, (2,) uint32."""
    return jax.random.bits(rng, (2,), jnp.uint32)


def keep(seeds: jax.Array, rate: float, heads, rows, columns) -> jax.Array:
    """Whether a weight is kept, of the broadcast shape of head (b * N + n), query and key numbers, int32.

    A chain of MurmurHash3's finaliser (Appleby 2011) over (seed, head), query and key: each weight is kept with
    probability 1 - rate, independently of all others as far as statistics can tell.
    """
    word = _mix(seeds[0] ^ _mix(heads.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + seeds[1]))
    word = _mix(word + rows.astype(jnp.uint32) * jnp.uint32(_GOLDEN))
    word = _mix(word ^ (columns.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + seeds[1]))
    return word >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
