"""Convolution as it is written down: a sum over the window's taps; and its gradients as JAX derives them."""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps, wide


def refuses(geometry: Geometry, x: jax.Array, w: jax.Array) -> None:
    """Nothing."""


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    """y[n, p, q, k] = sum_ijc x[n, s p + d i - low, s q + d j - low, c] w[i, j, c, k], in each group."""
    groups = geometry.groups
    grouped = x.reshape(*x.shape[:3], groups, -1)  # (N, H, W, G, C/G)
    w = w.reshape(*w.shape[:3], groups, -1)  # (kh, kw, C/G, G, K/G)
    y = sum(
        jnp.einsum("npqgc,cgk->npqgk", tap, w[i, j], precision="highest", preferred_element_type=wide(x.dtype))
        for (i, j), tap in taps(grouped, w.shape[:2], geometry)
    )
    return y.reshape(*y.shape[:3], -1).astype(x.dtype)  # (N, H', W', K)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    x = jnp.zeros((dy.shape[0], *size, w.shape[2] * geometry.groups), dy.dtype)
    return jax.vjp(lambda x: forward(geometry, x, w), x)[1](dy)[0]


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    w = jnp.zeros((*kernel, x.shape[3] // geometry.groups, dy.shape[3]), x.dtype)
    return jax.vjp(lambda w: forward(geometry, x, w), w)[1](dy)[0]
