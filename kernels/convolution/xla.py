"""Convolution for a CPU: trilinear.py's three fast convolutions, and what brings every other case to them."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from kernels.convolution.trilinear import forward
from kernels.convolution.windows import Geometry, taps


def convolution(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """As reference.convolution: float32."""
    compute = _dense if geometry.groups == 1 else _depthwise if w.shape[2] == 1 else _grouped
    return compute(x.astype(jnp.float32), w.astype(jnp.float32), geometry)


def _depthwise(x, w, geometry):
    """A sum of shifted elementwise products."""
    x = jnp.repeat(x, w.shape[3] // geometry.groups, axis=3)  # (N, H, W, K)
    return sum(tap * w[i, j][None, None] for (i, j), tap in taps(x, w.shape[:2], geometry))


def _grouped(x, w, geometry):
    """One dense convolution a group."""
    x = x.reshape(*x.shape[:3], geometry.groups, -1)  # (N, H, W, G, C/G)
    w = w.reshape(*w.shape[:3], geometry.groups, -1)  # (kh, kw, C/G, G, K/G)
    one = functools.partial(_dense, geometry=geometry._replace(groups=1))
    y = jax.vmap(one, in_axes=3, out_axes=3)(x, w)  # (N, H', W', G, K/G)
    return y.reshape(*y.shape[:3], -1)


def _dense(x, w, geometry):
    strides, padding, dilation, _ = geometry
    kernel = w.shape[:2]
    if kernel == strides == (1, 1) and padding == ((0, 0), (0, 0)):
        return lax.dot_general(x, w[0, 0], (((3,), (0,)), ((), ())))
    height, width = geometry.output(x.shape[1:3], kernel)
    # The zeros that reach further than the window are made here, the others by XLA. Without a stride there are as
    # many as keep the input's size, and the output is cut: without any zeros XLA's library is eight times slower.
    reach = geometry.reach(kernel)
    beyond = [tuple(max(p - r, 0) for p in side) for side, r in zip(padding, reach, strict=True)]
    within = [tuple(min(p, r) for p in side) for side, r in zip(padding, reach, strict=True)]
    if strides == (1, 1):
        within = [(low, max(high, r - low)) for (low, high), r in zip(within, reach, strict=True)]
    x = jnp.pad(x, ((0, 0), *beyond, (0, 0)))
    return forward(x, w, strides=strides, padding=tuple(within), dilation=dilation)[:, :height, :width]
