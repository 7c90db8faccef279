"""Convolution as it is written down: a sum over the window's taps."""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, taps


def convolution(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """y[n, p, q, k] = sum_ijc x[n, s p + d i - low, s q + d j - low, c] w[i, j, c, k], in each group; float32."""
    groups = geometry.groups
    x = x.reshape(*x.shape[:3], groups, -1)  # (N, H, W, G, C/G)
    w = w.reshape(*w.shape[:3], groups, -1)  # (kh, kw, C/G, G, K/G)
    y = sum(
        jnp.einsum("npqgc,cgk->npqgk", tap, w[i, j], precision="highest", preferred_element_type=jnp.float32)
        for (i, j), tap in taps(x, w.shape[:2], geometry)
    )
    return y.reshape(*y.shape[:3], -1)  # (N, H', W', K)
