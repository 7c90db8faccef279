"""The transpose of a convolution with a stride s, phase by phase: dx[s u + a] depends on dy[u + v] for a few v alone.

The tap i of dx[s u + a] is dy[(s u + a + low - d i) / s] where that divides: v = (a + low - d i) / s.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, pad

Views = list[tuple[Pair, jax.Array]]


def views(geometry: Geometry, dy: jax.Array, kernel: Pair, size: Pair) -> Iterator[Views]:
    """For each phase (a, b) of the stride, row by row: the taps (i, j), and what dx sees of dy (N, H', W', K) there,
    (N, ceil(H / s), ceil(W / s), K).
    """
    strides, padding, dilation, _ = geometry
    size = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    moves = [
        [[(i, (a + low - d * i) // s) for i in range(k) if (a + low - d * i) % s == 0] for a in range(s)]
        for k, s, (low, _), d in zip(kernel, strides, padding, dilation, strict=True)
    ]
    every = [[v for phase in axis for _, v in phase] for axis in moves]
    sides = [(max(0, -min(v)), max(0, n + max(v) - m)) for v, n, m in zip(every, size, dy.shape[1:3], strict=True)]
    padded = pad(dy, sides)
    (top, _), (left, _) = sides
    for rows, columns in itertools.product(*moves):
        yield [
            ((i, j), padded[:, top + u : top + u + size[0], left + v : left + v + size[1]])
            for (i, u), (j, v) in itertools.product(rows, columns)
        ]


def interleave(parts: list[jax.Array], strides: Pair, size: Pair) -> jax.Array:
    """dx (N, *size, C) of its phases, each (N, ceil(H / s), ceil(W / s), C)."""
    images, rows, columns, channels = parts[0].shape
    if len(parts) > 1:
        across = strides[1]
        dx = [jnp.stack(parts[i : i + across], axis=3) for i in range(0, len(parts), across)]
        dx = jnp.stack(dx, axis=2).reshape(images, rows * strides[0], columns, across, channels)
        parts = [dx.reshape(images, rows * strides[0], columns * across, channels)]  # explicit axes merge two at a time
    return parts[0][:, : size[0], : size[1]]
