"""Convolution on TPUs, in Pallas: of a block of images in VMEM a matrix product for each of the window's taps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels.convolution.epilogue import Epilogue
from kernels.convolution.tpu import walk, weights
from kernels.convolution.tpu.channels import LANES, blocks
from kernels.convolution.tpu.product import NOTHING, product
from kernels.convolution.tpu.tiles import tile
from kernels.convolution.tpu.walk import Walk
from kernels.convolution.windows import DTYPES, Geometry, Pair, taps

__all__ = ["forward", "input_gradient", "refuses", "weight_gradient"]

NARROW = 16  # channels: with no more than these, all taps become channels, in HBM
POINT = Geometry((1, 1), ((0, 0), (0, 0)))


def refuses(geometry: Geometry, x: Any, w: Any) -> str | None:
    """Why not, of x and w with a shape and a dtype, or None: forward and both gradients must have room in VMEM."""
    if x.dtype not in DTYPES:
        return f"has no {x.dtype}"
    return _refuses(geometry, tuple(x.shape), tuple(w.shape), jnp.dtype(x.dtype))


@functools.cache
def _refuses(geometry, image, kernel, dtype):
    output = (image[0], *geometry.output(image[1:3], kernel[:2]), kernel[3])
    x, w, y = (jax.ShapeDtypeStruct(shape, dtype) for shape in (image, kernel, output))
    try:
        jax.eval_shape(lambda x, w, y: forward(geometry, x, w, Epilogue(residual=y)), x, w, y)
        jax.eval_shape(lambda dy, w: input_gradient(geometry, dy, w, image[1:3]), y, w)
        jax.eval_shape(lambda x, dy: weight_gradient(geometry, x, dy, kernel[:2]), x, y)
    except NotImplementedError as error:
        return str(error)
    return None


def forward(geometry: Geometry, x: jax.Array, w: jax.Array, follow: Epilogue = NOTHING) -> jax.Array:
    """The convolution and what follows it, in float32 until it is y, (N, H', W', K) of x's dtype."""
    return _forward("convolution_forward", geometry, x, w, x.dtype, follow)


def _forward(name, geometry, x, w, dtype, follow=NOTHING):
    size = geometry.output(x.shape[1:3], w.shape[:2])
    x, walks = _fold(geometry, x, w.shape[:2])
    w = _fold_kernel(w, walks, x.shape[3] // geometry.groups)
    if _depthwise(geometry, w.shape):
        x = jnp.repeat(x, w.shape[3] // geometry.groups, axis=3)
    cut, matrices = _matrices(geometry, w)
    tiles = tile(walks, x.shape[0], x.dtype, max(cut.c, cut.k), cut.depthwise)
    return product(name, tiles, cut, x, matrices, size, dtype, follow)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    """dx (N, *size, C) of dy (N, H', W', K): a convolution with the transposed kernel, phase by phase of the stride."""
    name, channels, groups = "convolution_input_gradient", w.shape[2] * geometry.groups, geometry.groups
    depthwise = _depthwise(geometry, w.shape)
    if _all_taps(geometry, channels, w.shape[:2]):
        kernel, w = w.shape[:2], w.reshape(1, 1, -1, w.shape[3]).swapaxes(2, 3)  # (1, 1, K, kh kw C)
        values = _forward(name, POINT, dy, w, jnp.float32)  # (N, H', W', kh kw C)
        x = jax.ShapeDtypeStruct((dy.shape[0], *size, channels), values.dtype)
        return jax.linear_transpose(lambda x: _fold(geometry, x, kernel)[0], x)(values)[0].astype(dy.dtype)
    if not depthwise:
        w = w.reshape(*w.shape[:3], groups, -1)  # (kh, kw, C/G, G, K/G)
        w = w.transpose(0, 1, 4, 3, 2).reshape(*w.shape[:2], w.shape[4], channels)  # (kh, kw, K/G, C)
        reaches = geometry.reach(w.shape[:2])
        sides = zip(reaches, geometry.padding, size, dy.shape[1:3], strict=True)
        padding = tuple((reach - low, n + low - m) for reach, (low, _), n, m in sides)
        if geometry.strides == (1, 1) and min(map(min, padding)) >= 0:
            return _forward(name, geometry._replace(padding=padding), dy, w[::-1, ::-1], dy.dtype)
    dtype = dy.dtype if w.shape[3] == channels else jnp.float32
    cut, matrices = _matrices(geometry, w)
    walks = walk.backward(geometry, size, w.shape[:2])
    tiles = tile(walks, dy.shape[0], dy.dtype, max(cut.c, cut.k), depthwise)
    dx = product(name, tiles, cut, dy, matrices, size, dtype)
    if dx.shape[3] != channels:  # of what the forward pass has repeated, the sum
        dx = dx.reshape(*dx.shape[:3], channels, -1).sum(4)
    return dx.astype(dy.dtype)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    """dw (*kernel, C / groups, K) of x (N, H, W, C) and dy (N, H', W', K), summed in float32, always in one order."""
    shape = (*kernel, x.shape[3] // geometry.groups, dy.shape[3])
    depthwise, groups = _depthwise(geometry, shape), geometry.groups
    if depthwise:
        x = jnp.repeat(x, shape[3] // groups, axis=3)
    x, walks = _fold(geometry, x, kernel)
    cut = blocks(_kernel(walks), groups, x.shape[3] // groups, dy.shape[3] // groups, 4, depthwise)
    tiles = tile(walks, x.shape[0], x.dtype, max(cut.c, cut.k), depthwise)
    dw = weights.gradient(tiles, cut, x, dy)
    dw = dw[:, : dy.shape[3]] if depthwise else cut.kernels(dw)
    return _unfold_kernel(dw, walks, shape).astype(x.dtype)


def _matrices(geometry, w):
    """How the channels are cut, and the kernel so: (taps, C', K'), or (taps, K') if depthwise."""
    depthwise = _depthwise(geometry, w.shape)
    groups = geometry.groups
    cut = blocks(w.shape[:2], groups, w.shape[2], w.shape[3] // groups, w.dtype.itemsize, depthwise)
    return cut, cut.pad(w.reshape(-1, w.shape[3])) if depthwise else cut.matrices(w)


def _depthwise(geometry: Geometry, w: tuple[int, ...]) -> bool:
    return geometry.groups > 1 and w[2] == 1


def _all_taps(geometry: Geometry, channels: int, kernel: Pair) -> bool:
    """Whether `_fold` leaves a matrix product of all pixels."""
    return geometry.groups == 1 and channels <= NARROW and kernel != (1, 1)


def _kernel(walks: tuple[Walk, Walk]) -> Pair:
    return tuple(len(walk.taps) for walk in walks)


def _fold(geometry: Geometry, x: jax.Array, kernel: Pair) -> tuple[jax.Array, tuple[Walk, Walk]]:
    """With few channels, (N, H, W, C), taps become channels: x, and what outputs see of it.

    The rows of a matrix unit would be empty else, and most of the lanes that the array has in HBM: all taps, or as many
    neighbours in a row as there are lanes for. A kernel of one tap has but the pixels that it sees.

    The last neighbours overlap those before, whose weights are zeros then: they are in the window too, so a number that
    is not finite is multiplied by a zero only where it counts anyway.
    """
    channels, ((sh, s), (rows, columns), (dh, d), groups) = x.shape[3], geometry
    if _all_taps(geometry, channels, kernel) or groups == 1 and kernel == (1, 1) and geometry != POINT:
        # First along a row, then down the columns: all at once compiles for longer, and takes gigabytes.
        x = _stack(x, (1, kernel[1]), Geometry((1, s), ((0, 0), columns), (1, d)))
        x = _stack(x, (kernel[0], 1), Geometry((sh, 1), (rows, (0, 0)), (dh, 1)))
        return x, walk.forward(POINT, x.shape[1:3], (1, 1))
    down, across = walk.forward(geometry, x.shape[1:3], kernel)
    f = min(kernel[1], LANES // channels)
    if groups > 1 or f <= 1:
        return x, (down, across)
    starts = [d * min(j, kernel[1] - f) for j in range(0, kernel[1], f)]
    width = s * (across.count - 1) + starts[-1] + 1
    more = width + d * (f - 1) - columns[0] - x.shape[2]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (columns[0], more, 0), (0, 0, 0)))
    x = jnp.concatenate([x[:, :, d * j : d * j + width] for j in range(f)], axis=3)  # (N, H, W', f C)
    return x, (down, walk.axis(0, s, across.count, starts))


def _stack(x: jax.Array, kernel: Pair, geometry: Geometry) -> jax.Array:
    """(N, H', W', kh kw C)."""
    return jnp.concatenate([tap for _, tap in taps(x, kernel, geometry)], axis=3)


def _fold_kernel(w: jax.Array, walks: tuple[Walk, Walk], channels: int) -> jax.Array:
    """The same of (kh, kw, C, K), with zeros where the last neighbours overlap."""
    kernel = _kernel(walks)
    width = kernel[0] * kernel[1] * channels // (w.shape[0] * w.shape[2])  # with the overlap
    last = width - width // kernel[1]
    zeros = jnp.zeros((w.shape[0], width - w.shape[1], *w.shape[2:]), w.dtype)
    return jnp.concatenate([w[:, :last], zeros, w[:, last:]], axis=1).reshape(*kernel, -1, w.shape[3])


def _unfold_kernel(dw: jax.Array, walks: tuple[Walk, Walk], shape: tuple[int, ...]) -> jax.Array:
    """The gradient of `_fold_kernel`, without that of the zeros, of any shape as (kh, kw, C, K)."""
    dw = dw.reshape(shape[0], -1, *shape[2:])
    width = dw.shape[1]
    last = width - width // _kernel(walks)[1]
    return jnp.concatenate([dw[:, :last], dw[:, last + width - shape[1] :]], axis=1)
