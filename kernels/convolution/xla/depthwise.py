"""Each channel's own convolution: sums of shifted elementwise products, which XLA fuses into one loop."""

import jax
import jax.numpy as jnp
from jax import lax

from kernels.convolution.windows import Geometry, Pair, taps
from kernels.convolution.xla import phases
from kernels.fusion import apart

TERMS = 8  # columns summed in one loop
TAPS = 9  # of a kernel, summed in one loop; 49 take twenty times as long as seven times 7


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

    def sums(x, dy):
        views = [view for _, view in taps(x, kernel, geometry)]
        return jnp.stack([s for i in range(0, len(views), TAPS) for s in _sums(views[i : i + TAPS], dy)])

    return apart(sums, x, dy).sum(1).reshape(*kernel, 1, -1)  # (kh kw, N, K) to (kh, kw, 1, K)


def _sums(views, dy):
    """Of each view, its products with dy (N, H', W', K), summed over the pixels of each image: (N, K)."""
    images, height, width, channels = dy.shape
    whole = width - width % TERMS
    parts = []
    for start, stop in ((0, whole), (whole, width)):
        if terms := min(TERMS, stop - start):
            blocks = (images, height, -1, terms, channels)
            products = [(view[:, :, start:stop] * dy[:, :, start:stop]).reshape(blocks) for view in views]
            # One reduction of many operands is one loop, which reads dy once.
            zeros = [jnp.zeros((), dy.dtype)] * len(views)
            parts.append(lax.reduce(products, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (3,)))
    return [sum(_all(part.reshape(images, -1, channels)) for part in each) for each in zip(*parts, strict=True)]


def _all(a):
    """The sum over the second axis, 16 terms at a time."""
    while (n := a.shape[1]) > 1:
        terms = min(16, n)
        a = jnp.pad(a, ((0, 0), (0, -n % terms), (0, 0)))
        a = a.reshape(a.shape[0], -1, terms, a.shape[2])
        a = sum(a[:, :, i] for i in range(terms))
    return a[:, 0]
