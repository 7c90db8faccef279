"""Pooling for Hopper GPUs: of what TMA has copied into shared memory, the maximum or the sum over views of it.

The gradient of the maximum takes two steps: which tap was each window's first maximum; and for each input the sum over
the windows that it is in, of those whose first maximum it was.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import target
from kernels.attention.hopper import HOPPER
from kernels.convolution.hopper import boxes, channelwise
from kernels.convolution.hopper.channelwise import Field
from kernels.convolution.windows import DTYPES, Geometry, Pair

TAPS = 256  # whose numbers bfloat16 holds


def refuses(x, window: Pair, geometry: Geometry) -> str | None:
    """Other GPUs, other dtypes, windows of which shared memory has no room for a row, wide strides."""
    platform, kind = target.device()
    if target.interpreter() is None and not any(name in kind for name in HOPPER):
        return f"runs on {', '.join(HOPPER)}, and this is {kind}"
    if x.dtype not in DTYPES:
        return f"has no {x.dtype}"
    walks, sizes = boxes.walks(geometry, window), (x.shape[0], *geometry.output(x.shape[1:3], window))
    fits = channelwise.planned(sizes, x.shape[3], [Field(walks, x.dtype)], x.dtype)
    if not fits or math.prod(window) > TAPS or math.prod(geometry.strides) > channelwise.PHASES:
        return f"has no windows of {window[0]} x {window[1]} with strides {geometry.strides}"
    return None


def max_pool(x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """y = the maximum over each window, NaN if there is one in it."""
    return _largest("pooling_max", x, window, geometry)


def max_pool_gradient(x: jax.Array, y: jax.Array, dy: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """dx of y = max_pool(x): dy at the first maximum of each window, row by row, or at its first NaN."""
    first = _largest("pooling_max_first", x, window, geometry, numbered=True)  # (N, H', W', C)

    parts = boxes.phases(geometry, window)

    def visit(load, i, j, number, dx):
        return dx + jnp.where(load(0, i, j) == lax.convert_element_type(number, jnp.float32), load(1, i, j), 0.0)

    more = [first, dy], window, visit, 1.0, geometry.strides
    return _summed("pooling_max_gradient", parts, boxes.hull(parts), x.shape[1:3], *more)


def sum_pool(x: jax.Array, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """y = scale times the sum over each window, in float32 until it is y."""
    size, walks = geometry.output(x.shape[1:3], window), boxes.walks(geometry, window)
    return _summed("pooling_sum", boxes.whole(walks), walks, size, [x], window, _add, scale)


def sum_pool_gradient(dy: jax.Array, size: Pair, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    """dx (N, *size, C) of y = sum_pool(x)."""
    parts = boxes.phases(geometry, window)
    more = [dy], window, _add, scale, geometry.strides
    return _summed("pooling_sum_gradient", parts, boxes.hull(parts), size, *more)


def _add(load, i, j, number, total):
    return total + load(0, i, j)


def _summed(name, parts, walks, size, arrays, window, visit, scale, strides=(1, 1)):
    """scale times the fold of visit(load, i, j, number, total) over each part's taps, from 0."""
    dtype, images, channels = arrays[0].dtype, arrays[0].shape[0], arrays[0].shape[3]
    fields = [Field(walks, dtype)] * len(arrays)
    extent = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    plan = channelwise.planned((images, *extent), channels, fields, dtype)

    def compute(part, load, vector, row, column):
        step = functools.partial(visit, load)
        return channelwise.taps(part, walks, window[1], step, channelwise.full(plan, 0.0)) * scale

    arrays = [channelwise.entered(x, walks) for x in arrays]
    computes = {at: functools.partial(compute, part) for at, part in parts.items()}
    return boxes.cut(channelwise.run(name, plan, fields, arrays, {}, dtype, computes, strides), (images, *size))


def _largest(name, x, window, geometry, numbered=False):
    """The maximum over each window, or the number of the first tap that sees it."""
    walks, (height, width) = boxes.walks(geometry, window), x.shape[1:3]
    field = Field(walks, x.dtype)
    size, padded = geometry.output((height, width), window), any(map(any, geometry.padding))
    plan = channelwise.planned((x.shape[0], *size), x.shape[3], [field], x.dtype)

    def compute(load, vector, row, column):
        def pixel(axis, tap, outputs):
            walk = walks[axis]
            return outputs * np.int32(walk.stride) + (walk.base + walk.step * tap)

        def inside(i, j):
            """Where a tap sees a pixel: none, if the row is not one of the image."""
            rows = pixel(0, i, row)
            end = jnp.where((rows >= 0) & (rows < height), np.int32(width), np.int32(0))
            columns = pixel(1, j, channelwise.pixels(plan) + column)
            return (columns >= 0) & (columns < end)

        def first_inside():
            """The number of the first tap that sees a pixel, which has the gradient if all are -inf."""
            places = pixel(0, 0, row), pixel(1, 0, channelwise.pixels(plan) + column)
            i, j = (jnp.where(place < 0, np.int32(0) - place, np.int32(0)) for place in places)
            return lax.convert_element_type(i * np.int32(window[1]) + j, jnp.float32)

        def visit(i, j, number, carry):
            best, first = carry
            value = load(0, i, j)
            if padded:
                value = jnp.where(inside(i, j), value, -jnp.inf)
            better = (value > best) | ((value != value) & (best == best))
            return jnp.where(better, value, best), jnp.where(
                better, lax.convert_element_type(number, jnp.float32), first
            )

        start = first_inside() if numbered and padded else channelwise.full(plan, 0.0)
        both = channelwise.full(plan, -jnp.inf), start
        best, first = channelwise.taps(boxes.whole(walks)[0, 0], walks, window[1], visit, both)
        return first if numbered else best

    y = channelwise.run(name, plan, [field], [channelwise.entered(x, walks)], {}, x.dtype, {(0, 0): compute})
    return boxes.cut(y, (x.shape[0], *size))
