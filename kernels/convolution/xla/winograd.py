"""3x3 convolution with fewer multiplications (Lavin and Gray 2016, Fast algorithms for convolutional neural networks,
F(4x4, 3x3) and F(2x2, 3x3)): a quarter, or four ninths.

Of each tile d of 6 x 6 inputs and the kernel g, the tile of 4 x 4 outputs is

    y = A' [(G g G') * (B' d B)] A

The elementwise products, summed over channels, are 36 products of matrices. The points 0, 1, -1, 2, -2 and infinity
lose four to eight bits of float32's: the relative error is about 3e-6. Of tiles of 4 x 4 inputs and 2 x 2 outputs there
are 16 products, and the error is 1e-6: for few pixels, where what takes time is to transform the kernel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.convolution.windows import Geometry, Pair, pad
from kernels.fusion import apart

M, TILE = 4, 6  # outputs and inputs of a tile, along each side
PIXELS = 1024  # of all images; with no more, tiles are the small ones

Grid = list[list[jax.Array]]  # the entries of a matrix, each an array of all tiles and channels


class Matrices(NamedTuple):
    """The transformations of tiles of m x m outputs."""

    m: int
    a: np.ndarray  # (m + 2, m)
    b: np.ndarray  # (m + 2, m + 2)
    g: np.ndarray  # (m + 2, 3)


LARGE = Matrices(
    M,
    np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]]),
    np.array(
        [
            [4, 0, 0, 0, 0, 0],
            [0, -4, 4, -2, 2, 4],
            [-5, -4, -4, -1, -1, 0],
            [0, 1, -1, 2, -2, -5],
            [1, 1, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ]
    ),
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
)
SMALL = Matrices(
    2,
    np.array([[1, 0], [1, 1], [1, -1], [0, -1]]),
    np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]]),
    np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
)


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    return _convolve(geometry, x, w, lambda d, g: d @ g)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    """The convolution with the kernel turned around, padded by what remains of its reach."""
    sides = [(2 - low, n + low - m) for (low, _), n, m in zip(geometry.padding, size, dy.shape[1:3], strict=True)]
    return _convolve(geometry._replace(padding=tuple(sides)), dy, w[::-1, ::-1], lambda d, g: d @ g.T)


def _convolve(geometry, x, w, product):
    size = geometry.output(x.shape[1:3], (3, 3))

    def convolve(matrices, x, w):
        m, a, b, g = matrices
        tiles = _apply(b.T, _cut(x, [low for low, _ in geometry.padding], size, m, m + 2))  # each (T, C)
        kernel = _apply(g, [[w[i, j] for j in range(3)] for i in range(3)])  # each (C, K)
        sums = [[product(*pair) for pair in zip(*rows, strict=True)] for rows in zip(tiles, kernel, strict=True)]
        return _joined(_apply(a.T, sums), x.shape[0], size, m)

    return _run(convolve, x, w, x.shape[0], size)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    size = dy.shape[1:3]

    def gradient(matrices, x, dy):
        m, a, b, g = matrices
        tiles = _apply(b.T, _cut(x, [low for low, _ in geometry.padding], size, m, m + 2))  # each (T, C)
        outputs = _apply(a, _cut(dy, (0, 0), size, m, m))  # each (T, K)
        sums = [[d.T @ y for d, y in zip(*rows, strict=True)] for rows in zip(tiles, outputs, strict=True)]
        return jnp.stack([jnp.stack(row) for row in _apply(g.T, sums)])  # (3, 3, C, K)

    return _run(gradient, x, dy, x.shape[0], size)


def _run(function, one, other, images, size):
    """Of few pixels apart: else XLA keeps the transformed kernels of a layer's forward and backward passes at once."""
    if images * size[0] * size[1] > PIXELS:
        return function(LARGE, one, other)
    return apart(lambda one, other: function(SMALL, one, other), one, other)


def _cut(x, low, size, m, side) -> Grid:
    """The pixel (a, b) of every tile of side x side that begins every m pixels: side x side arrays (T, C)."""
    sides = [(a, m * -(-n // m) + side - m - a - have) for a, n, have in zip(low, size, x.shape[1:3], strict=True)]
    x = pad(x, sides)
    ends = [n - side + 1 for n in x.shape[1:3]]
    return [
        [x[:, a : a + ends[0] : m, b : b + ends[1] : m].reshape(-1, x.shape[3]) for b in range(side)]
        for a in range(side)
    ]


def _joined(tiles: Grid, images: int, size: Pair, m: int) -> jax.Array:
    """Tiles of m x m outputs, each (T, K), as images (N, *size, K)."""
    rows, columns = (-(-n // m) for n in size)
    shape = (images, rows, columns, -1)
    y = [jnp.stack([pixel.reshape(shape) for pixel in row], axis=3) for row in tiles]  # each (N, H'/m, W'/m, m, K)
    y = jnp.stack(y, axis=2)  # (N, H'/m, m, W'/m, m, K)
    return y.reshape(images, rows * m, columns * m, -1)[:, : size[0], : size[1]]


def _apply(matrix: np.ndarray, grid: Grid) -> Grid:
    """matrix grid matrix'. The rows of the first product are computed once: fused, they would be for each entry."""
    half = jax.lax.optimization_barrier(
        [[_combine(row, column) for column in zip(*grid, strict=True)] for row in matrix]
    )
    return [[_combine(row, entries) for row in matrix] for entries in half]


def _combine(weights, arrays):
    terms = [float(c) * a if abs(c) != 1 else a if c == 1 else -a for c, a in zip(weights, arrays, strict=True) if c]
    return sum(terms[1:], terms[0])
