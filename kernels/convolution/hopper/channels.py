"""Channels in whole chunks, and in as many bfloat16 numbers as there are in one of the inputs."""

import jax
import jax.numpy as jnp


def rounded(channels: int) -> int:
    """To whole chunks of 64, or to one of 32."""
    return 32 if channels <= 32 else -(-channels // 64) * 64


def spread(x: jax.Array, groups: int, channels: int) -> jax.Array:
    """(.., G C) as (.., G C'), zeros after the channels of each group."""
    own = x.shape[-1] // groups
    if own == channels:
        return x
    x = x.reshape(*x.shape[:-1], groups, own)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - own)])
    return x.reshape(*x.shape[:-2], -1)


def gathered(x: jax.Array, groups: int, channels: int) -> jax.Array:
    """What `spread` had."""
    if x.shape[-1] == groups * channels:
        return x
    return x.reshape(*x.shape[:-1], groups, -1)[..., :channels].reshape(*x.shape[:-1], -1)


def count(dtype) -> int:
    """How many bfloat16 numbers sum up to one of a dtype."""
    return 2 if dtype == jnp.float32 else 1


def split(x: jax.Array) -> list[jax.Array]:
    """The rounding of x, and for float32 that of what it leaves."""
    high = x.astype(jnp.bfloat16)
    return [high] if x.dtype == jnp.bfloat16 else [high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)]


def joined(parts: list[jax.Array]) -> jax.Array:
    """What was split."""
    return parts[0] if len(parts) == 1 else sum(part.astype(jnp.float32) for part in parts)
