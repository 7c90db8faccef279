"""Each channel's own convolution: sums of shifted elementwise products, which XLA fuses into one loop."""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps
from kernels.convolution.xla import phases
from kernels.fusion import apart

TERMS = 8  # columns summed in one loop; with 16, XLA makes loops that take fifteen times as long


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    x = jnp.repeat(x, w.shape[3] // geometry.groups, axis=3)  # (N, H, W, K)
    return sum(tap * w[i, j][None, None] for (i, j), tap in taps(x, w.shape[:2], geometry))


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    parts = []
    for views in phases.views(geometry, dy, w.shape[:2], size):
        shape = (dy.shape[0], *(-(-n // s) for n, s in zip(size, geometry.strides, strict=True)), dy.shape[3])
        parts.append(sum((view * w[i, j][None, None] for (i, j), view in views), jnp.zeros(shape, dy.dtype)))
    dx = phases.interleave(parts, geometry.strides, size)
    return dx.reshape(*dx.shape[:3], geometry.groups, -1).sum(4) if dx.shape[3] > geometry.groups else dx


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    """Sums over pixels a few terms at a time: XLA's own sum over many rows is ten times slower."""
    x = jnp.repeat(x, dy.shape[3] // geometry.groups, axis=3)
    sums = lambda x, dy: jnp.stack([_sum(tap, dy) for _, tap in taps(x, kernel, geometry)])  # noqa: E731
    return apart(sums, x, dy).sum(1).reshape(*kernel, 1, -1)  # (kh kw, N, K) to (kh, kw, 1, K)


def _sum(tap, dy):
    """The products of (N, H', W', K), summed over the pixels of each image: (N, K)."""
    images, _, width, channels = dy.shape
    whole = width - width % TERMS
    blocks = [tap[:, :, w:whole:TERMS] * dy[:, :, w:whole:TERMS] for w in range(TERMS)] if whole else []
    rest = [tap[:, :, w : w + 1] * dy[:, :, w : w + 1] for w in range(whole, width)]
    parts = [sum(terms[1:], terms[0]) for terms in (blocks, rest) if terms]
    return sum(_all(part.reshape(images, -1, channels)) for part in parts)


def _all(a):
    """The sum over the second axis, 16 terms at a time."""
    while (n := a.shape[1]) > 1:
        terms = min(16, n)
        a = jnp.pad(a, ((0, 0), (0, -n % terms), (0, 0)))
        a = a.reshape(a.shape[0], -1, terms, a.shape[2])
        a = sum(a[:, :, i] for i in range(terms))
    return a[:, 0]
