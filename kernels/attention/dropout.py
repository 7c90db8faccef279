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
    return kept(of_queries(seeds, heads, rows), of_keys(seeds, columns), rate)


def of_queries(seeds, heads, rows) -> jax.Array:
    """The word of each query in its head, uint32."""
    word = _mix(seeds[0] ^ _mix(heads.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + seeds[1]))
    return _mix(word + rows.astype(jnp.uint32) * jnp.uint32(_GOLDEN))


def of_keys(seeds, columns) -> jax.Array:
    """The word of each key, uint32."""
    return columns.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + seeds[1]


def kept(query_words, key_words, rate: float) -> jax.Array:
    """Whether a weight is kept, from the words of its query and its key."""
    return _mix(query_words ^ key_words) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
