"""Pooling on TPUs, in Pallas: of a block of images in VMEM the maximum, or the sum, over views of it.

The gradient of the maximum takes two steps: which tap was each window's first maximum; and for each input the sum over
the windows that it is in, of those whose first maximum it was.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.convolution.tpu import walk
from kernels.convolution.tpu.channels import blocks
from kernels.convolution.tpu.tiles import call, tile
from kernels.convolution.windows import DTYPES, Geometry, Pair


def refuses(x: Any, window: Pair, geometry: Geometry) -> str | None:
    """Why not, of x with a shape and a dtype, or None: forward and backward must have room in VMEM."""
    return _refuses(tuple(x.shape), jnp.dtype(x.dtype), window, geometry) if x.dtype in DTYPES else f"has no {x.dtype}"


@functools.cache
def _refuses(shape, dtype, window, geometry):
    x = jax.ShapeDtypeStruct(shape, dtype)
    try:
        y = jax.eval_shape(lambda x: max_pool(x, window, geometry), x)
        jax.eval_shape(lambda x, y: max_pool_gradient(x, y, y, window, geometry), x, y)
        jax.eval_shape(lambda y: sum_pool_gradient(y, shape[1:3], window, geometry, 1.0), y)
    except NotImplementedError as error:
        return str(error)
    return None


def max_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """y (N, H', W', C) = the maximum over each window of x (N, H, W, C), NaN where the window has one."""
    walks, size = walk.forward(geometry, x.shape[1:3], window), geometry.output(x.shape[1:3], window)
    return _pool(_max_kernel, "max", walks, [(x, True, -jnp.inf)], x.dtype, size)


def max_pool_gradient(x: jax.Array, y: jax.Array, dy: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """dx of y = max_pool(x): dy at the first maximum of each window, row by row, or at its first NaN.

    Padding is no maximum: of a window where all is -inf the first number that is not padding has it.
    """
    size = x.shape[1:3]
    operands = [(x, True, -jnp.inf), (y, False, 0)]
    first = _pool(_first_kernel, "max_first", walk.forward(geometry, size, window), operands, jnp.int32, y.shape[1:3])
    first = jnp.where(first < 0, _first_inside(y.shape[1:3], window, geometry), first)
    operands = [(first, True, -1), (dy, True, 0)]
    return _pool(_max_gradient_kernel, "max_gradient", walk.backward(geometry, size, window), operands, x.dtype, size)


def sum_pool(x: jax.Array, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """y = scale * the sum over each window, in float32 until it is y: the mean, with a scale of 1 / (height width)."""
    walks, size = walk.forward(geometry, x.shape[1:3], window), geometry.output(x.shape[1:3], window)
    return _pool(functools.partial(_sum_kernel, scale), "sum", walks, [(x, True, 0)], x.dtype, size)


def sum_pool_gradient(dy: jax.Array, size: Pair, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """dx (N, *size, C) of y = sum_pool(x)."""
    walks, kernel = walk.backward(geometry, size, window), functools.partial(_sum_kernel, scale)
    return _pool(kernel, "sum_gradient", walks, [(dy, True, 0)], dy.dtype, size)


def _first_inside(counts: Pair, window: Pair, geometry: Geometry) -> np.ndarray:
    """(H', W', 1): the first tap of each window that is not padding."""
    sides = zip(counts, geometry.strides, geometry.padding, strict=True)
    row, column = (np.maximum(low - s * np.arange(count), 0) for count, s, (low, _) in sides)
    return np.int32(row[:, None] * window[1] + column)[..., None]


def _pool(kernel: Callable, name: str, walks, operands, dtype, size: Pair) -> jax.Array:
    """Run kernel(tiles, *operands, output); of each operand whether it is of the inputs' shape, and what pads it."""
    x = operands[0][0]
    cut = blocks((1, 1), x.shape[3], 1, 1, x.dtype.itemsize, depthwise=True)
    tiles = tile(walks, x.shape[0], x.dtype, cut.c, elementwise=True)
    place = lambda k, n, u, v: (n, u, v, k)  # noqa: E731
    many = cut.steps[1]
    y = call(
        functools.partial(kernel, tiles),
        f"pooling_{name}",
        [tiles.enter(cut.pad(array), inputs, fill) for array, inputs, fill in operands],
        (many, *tiles.steps),
        [tiles.spec(cut.c, inputs, place) for _, inputs, _ in operands],
        tiles.spec(cut.c, False, place),
        tiles.shape(many * cut.c),
        dtype,
        [],
        parallel=4,
    )
    return cut.cut(tiles.leave(y, size))


def _max_kernel(tiles, x_ref, y_ref):
    def chunk(i):
        views = (tiles.view(x_ref, i, *tap).astype(jnp.float32) for _, *tap in tiles.taps[0, 0])
        tiles.put(y_ref, i, (0, 0), functools.reduce(jnp.maximum, views))

    tiles.chunks(chunk)


def _first_kernel(tiles, x_ref, y_ref, first_ref):
    """The least t of x[u + a_t, v + b_t] = y[u, v], or of a NaN: then y is one; -1 if y is -inf, as padding is."""

    def chunk(i):
        y = tiles.view(y_ref, i).astype(jnp.float32)
        first = jnp.full(y.shape, -1, jnp.int32)
        for t, *tap in reversed(tiles.taps[0, 0]):
            x = tiles.view(x_ref, i, *tap).astype(jnp.float32)
            first = jnp.where((x == y) | (x != x), t, first)
        tiles.put(first_ref, i, (0, 0), jnp.where(y == -jnp.inf, -1, first))

    tiles.chunks(chunk)


def _max_gradient_kernel(tiles, first_ref, dy_ref, dx_ref):
    """dx[u, v] = sum_t dy[u + a_t, v + b_t], where t is the first."""

    def chunk(i):
        for phase, taps in tiles.taps.items():
            dx = jnp.zeros((tiles.matrix, dx_ref.shape[-1]), jnp.float32)
            for t, *tap in taps:
                dy = tiles.view(dy_ref, i, *tap).astype(jnp.float32)
                dx += jnp.where(tiles.view(first_ref, i, *tap) == t, dy, 0.0)
            tiles.put(dx_ref, i, phase, dx)

    tiles.chunks(chunk)


def _sum_kernel(scale, tiles, x_ref, y_ref):
    """y[u, v] = scale sum_t x[u + a_t, v + b_t], forward and backward."""

    def chunk(i):
        for phase, taps in tiles.taps.items():
            y = jnp.zeros((tiles.matrix, y_ref.shape[-1]), jnp.float32)
            for _, *tap in taps:
                y += tiles.view(x_ref, i, *tap).astype(jnp.float32)
            tiles.put(y_ref, i, phase, scale * y)

    tiles.chunks(chunk)
