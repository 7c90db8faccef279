"""Convolution as it is written down: a sum over the window's taps."""

import jax
import jax.numpy as jnp

from kernels.convolution.geometry import Geometry


def convolution(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """y[n, h, v, k] = sum_ijc x[n, s h + d i - low, s v + d j - low, c] w[i, j, c, k], per group of channels."""
    (sh, sw), padding, (dh, dw), groups = geometry
    kh, kw, channels, features = w.shape
    height, width = geometry.output(x.shape[1:3], (kh, kw))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    x = x.reshape(*x.shape[:3], groups, channels)  # (N, H, W, G, C/G)
    w = w.reshape(kh, kw, channels, groups, features // groups)  # (kh, kw, C/G, G, K/G)
    y = sum(
        jnp.einsum(
            "nhwgc,cgk->nhwgk",
            x[:, dh * i : dh * i + sh * (height - 1) + 1 : sh, dw * j : dw * j + sw * (width - 1) + 1 : sw],
            w[i, j],
            precision="highest",
            preferred_element_type=jnp.float32,
        )
        for i in range(kh)
        for j in range(kw)
    )
    return y.reshape(-1, height, width, features).astype(x.dtype)
