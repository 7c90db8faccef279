"""Each channel's own convolution: sums of shifted elementwise products, which XLA fuses into one loop."""

import itertools

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, taps

TERMS = 4  # of a sum in one loop: with more, rows that are a power of two apart fall on each other in the cache


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    x = jnp.repeat(x, w.shape[3] // geometry.groups, axis=3)  # (N, H, W, K)
    return sum(tap * w[i, j][None, None] for (i, j), tap in taps(x, w.shape[:2], geometry))


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    """Phase by phase of the stride: dx[n, s p + a, ...] sums the taps that are a away from a multiple of s."""
    phases = itertools.product(*map(range, geometry.strides))
    rows, columns = (-(-n // s) for n, s in zip(size, geometry.strides, strict=True))
    parts = [_phase(geometry, dy, w, phase, (rows, columns)) for phase in phases]
    if len(parts) > 1:
        dx = jnp.stack(parts, axis=3).reshape(dy.shape[0], rows, columns, *geometry.strides, -1)
        dx = dx.swapaxes(2, 3).reshape(dy.shape[0], rows * geometry.strides[0], -1, dy.shape[3])
    else:
        dx = parts[0]
    dx = dx[:, : size[0], : size[1]]
    return dx.reshape(*dx.shape[:3], geometry.groups, -1).sum(4) if dx.shape[3] > geometry.groups else dx


def _phase(geometry, dy, w, phase, size):
    """dx[s u + a] = sum_i dy[u + (a + low - d i) / s] w[i], where that divides."""
    shifts = []
    for a, k, s, d, (low, _) in zip(
        phase, w.shape[:2], *geometry[:1], geometry.dilation, geometry.padding, strict=True
    ):
        shifts.append([(i, (a + low - d * i) // s) for i in range(k) if (a + low - d * i) % s == 0])
    sides = [
        (max(0, -min((v for _, v in axis), default=0)), max(0, n + max((v for _, v in axis), default=0) - m))
        for axis, n, m in zip(shifts, size, dy.shape[1:3], strict=True)
    ]
    padded = jnp.pad(dy, ((0, 0), *sides, (0, 0)))
    terms = [
        padded[:, sides[0][0] + u :][:, : size[0], sides[1][0] + v :][:, :, : size[1]] * w[i, j][None, None]
        for (i, u), (j, v) in itertools.product(*shifts)
    ]
    return sum(terms) if terms else jnp.zeros((dy.shape[0], *size, dy.shape[3]), dy.dtype)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    """Sums over images and pixels a few terms at a time: XLA's own sum over many rows is ten times slower."""
    x = jnp.repeat(x, dy.shape[3] // geometry.groups, axis=3)
    products = [_sum(tap, dy) for _, tap in taps(x, kernel, geometry)]  # each (M, W', K)
    dw = jnp.stack(products, axis=1)  # (M, kh kw, W', K)
    while dw.shape[0] > 1:
        dw = _fold(dw)
    dw = dw[0].swapaxes(0, 1)  # (W', kh kw, K)
    while dw.shape[0] > 1:
        dw = _fold(dw)
    return dw.reshape(*kernel, 1, -1)


def _sum(tap, dy):
    """The products of (N, H', W', K), summed over blocks of rows: (N H' / TERMS, W', K)."""
    rows = -dy.shape[1] % TERMS
    tap, dy = (jnp.pad(a, ((0, 0), (0, rows), (0, 0), (0, 0))) for a in (tap, dy))
    part = sum(tap[:, r::TERMS] * dy[:, r::TERMS] for r in range(TERMS))
    return part.reshape(-1, *part.shape[2:])


def _fold(a):
    """The first axis, 16 times shorter."""
    terms = min(16, a.shape[0])
    a = jnp.pad(a, ((0, -a.shape[0] % terms), *((0, 0),) * (a.ndim - 1)))
    a = a.reshape(-1, terms, *a.shape[1:])
    return sum(a[:, i] for i in range(terms))
