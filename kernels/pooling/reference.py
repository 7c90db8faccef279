"""Pooling as it is written down: a window at every place."""

import jax
import jax.numpy as jnp


def windows(x, window, strides, padding, fill):
    """The taps of every window: (N, H, W, C) to (kh kw, N, H', W', C)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    (kh, kw), (sh, sw) = window, strides
    height, width = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    return jnp.stack(
        [
            x[:, i : i + sh * (height - 1) + 1 : sh, j : j + sw * (width - 1) + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
    )


def max_pool(x, window, strides, padding) -> jax.Array:
    return windows(x, window, strides, padding, -jnp.inf).max(axis=0)  # its gradient divides among equals


def average_pool(x, window, strides, padding) -> jax.Array:
    return windows(x, window, strides, padding, 0.0).mean(axis=0, dtype=jnp.float32).astype(x.dtype)
