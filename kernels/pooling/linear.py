"""Sums over windows and their transpose as two linear primitives, of which all derivatives of pooling are made.

    y  = collect(x, first)    y[p] = sum_t x[s p + t - low] [first[p] = t]
    dx = spread(dy, first)    dx[q] = sum over such p, t that q = s p + t - low of dy[p] [first[p] = t]

for taps t = (i, j) of a window; `first` has the number of one tap of each window, kw i + j; without it all taps count.
They are primitives because JAX would transpose every slice on its own, into a padding: slow, and many arrays at once.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels.convolution.windows import Geometry, Pair, taps, wide
from kernels.convolution.xla import phases
from kernels.meshes import varying

TERMS = 16  # of a sum in one loop; with more, rows and columns are summed one after the other
TAPS = 64  # of a window in one loop, or phases of a stride: with 100, XLA compiles for 25 s


def collect(x: jax.Array, *first: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    """x (N, H, W, C), first (N, H', W', C) or nothing -> y (N, H', W', C)."""
    return collect_p.bind(*varying((x, *first)), window=window, geometry=geometry)


def spread(dy: jax.Array, *first: jax.Array, window: Pair, geometry: Geometry, size: Pair) -> jax.Array:
    """dy (N, H', W', C), first (N, H', W', C) or nothing -> dx (N, *size, C)."""
    return spread_p.bind(*varying((dy, *first)), window=window, geometry=geometry, size=size)


def fold(combine: Callable, arrays: tuple[jax.Array, ...], window: Pair, geometry: Geometry) -> tuple[jax.Array, ...]:
    """combine([((i, j), (what the tap sees of each array, ...)), ...]) for every window, a tuple of as many arrays.

    At a border there are fewer taps, and no padding. Windows that overlap, and large ones, are combined along rows, and
    what that gives along columns, where i or j is 0.

    Arrays (N, H, W, C) -> (N, H', W', C).
    """
    if 1 not in window and (window != geometry.strides or math.prod(window) > TAPS):
        across, down = _axes(window, geometry)
        rows = fold(combine, arrays, *across)
        return fold(combine, tuple(jax.lax.optimization_barrier(rows)), *down)
    size = arrays[0].shape[1:3]
    counts = geometry.output(size, window)
    rows, columns = (
        list(_segments(size[a], counts[a], window[a], geometry.strides[a], geometry.padding[a][0])) for a in (0, 1)
    )

    def part(row, column):
        return combine([((i, j), tuple(a[:, down, across] for a in arrays)) for i, down in row for j, across in column])

    strips = [_joined([part(row, column) for column in columns], axis=2) for row in rows]
    return _joined(strips, axis=1)


def _segments(size: int, count: int, taps: int, stride: int, low: int) -> Iterator[list[tuple[int, slice]]]:
    """For each run of outputs whose windows reach the same taps: these, and the slice of the pixels there."""
    inside = lambda p: tuple(i for i in range(taps) if 0 <= stride * p + i - low < size)  # noqa: E731
    runs = {}
    for p in range(count):
        runs.setdefault(inside(p), []).append(p)
    for reached, outputs in runs.items():
        ends = stride * outputs[0] - low, stride * outputs[-1] - low
        yield [(i, slice(ends[0] + i, ends[1] + i + 1, stride)) for i in reached]


def _joined(parts, axis):
    return tuple(a[0] if len(a) == 1 else jnp.concatenate(a, axis) for a in zip(*parts, strict=True))


def _axes(window, geometry):
    """The window and the geometry along rows, and along columns."""
    (kh, kw), (sh, sw), (rows, columns) = window, geometry.strides, geometry.padding
    return ((1, kw), Geometry((1, sw), ((0, 0), columns))), ((kh, 1), Geometry((sh, 1), (rows, (0, 0))))


def _collect(x, *first, window, geometry):
    if not first:
        return fold(lambda seen: (sum(v for _, (v,) in seen),), (x,), window, geometry)[0]
    if _far_apart(window, geometry):
        spread = functools.partial(_placed, window=window, geometry=geometry, size=x.shape[1:3])
        return jax.vjp(lambda dy: spread(dy, *first), jnp.zeros_like(first[0], x.dtype))[1](x)[0]
    seen = taps(x, window, geometry)
    return sum(_chosen(tap, values, first, window) for tap, values in seen)


def _spread(dy, *first, window, geometry, size):
    if _far_apart(window, geometry):
        return _placed(dy, *first, window=window, geometry=geometry, size=size)
    terms = math.prod(-(-k // s) for k, s in zip(window, geometry.strides, strict=True))
    if not first and terms > TERMS and 1 not in window:
        across, down = _axes(window, geometry)
        rows = _spread(dy, window=down[0], geometry=down[1], size=(size[0], dy.shape[2]))
        return _spread(rows, window=across[0], geometry=across[1], size=size)
    parts = []
    for views in zip(*(phases.views(geometry, a, window, size) for a in (dy, *first)), strict=True):
        seen = ((each[0][0], *(view for _, view in each)) for each in zip(*views, strict=True))
        terms = [_chosen(tap, d.astype(wide(d.dtype)), numbers, window) for tap, d, *numbers in seen]
        parts.append(sum(terms).astype(dy.dtype) if terms else None)  # inputs between windows
    zeros = jnp.zeros_like(next(part for part in parts if part is not None))
    return phases.interleave([zeros if part is None else part for part in parts], geometry.strides, size)


def _far_apart(window, geometry):
    """Whether no input is in two windows, and a stride has many phases."""
    return all(k <= s for k, s in zip(window, geometry.strides, strict=True)) and math.prod(geometry.strides) > TAPS


def _placed(dy, *first, window, geometry, size):
    """`_spread` of windows that are apart: of each a tile, as large as the stride."""
    (images, rows, columns, channels), (sh, sw) = dy.shape, geometry.strides
    numbers = np.full((sh, sw), -1)
    numbers[: window[0], : window[1]] = np.arange(math.prod(window)).reshape(window)
    numbers = numbers.reshape(1, 1, sh, 1, sw, 1)
    dy, *first = (a[:, :, None, :, None] for a in (dy, *first))  # (N, H', 1, W', 1, C)
    chosen = jnp.asarray(numbers, first[0].dtype) == first[0] if first else jnp.asarray(numbers >= 0)
    tiles = jnp.where(chosen, dy, jnp.zeros((), dy.dtype))  # (N, H', s, W', s, C)
    dx = tiles.reshape(images, rows * sh, columns, sw, channels).reshape(images, rows * sh, columns * sw, channels)
    sides = zip(size, geometry.strides, geometry.padding, (rows, columns), strict=True)
    sides = [(-low, n + low - s * m, 0) for n, s, (low, _), m in sides]
    return jax.lax.pad(dx, jnp.zeros((), dx.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


def _chosen(tap, values, first, window):
    """The values of a tap where it is the one that counts."""
    number = window[1] * tap[0] + tap[1]
    return jnp.where(first[0] == number, values, jnp.zeros((), values.dtype)) if first else values


def _primitive(function, shape):
    primitive = Primitive(f"pooling{function.__name__}")

    def of_images(*arrays, **static):
        one = functools.partial(function, **static)
        for _ in arrays[0].shape[4:]:
            one = jax.vmap(one)
        return one(*arrays)

    def batch(arrays, axes, **static):
        count = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
        whole = (
            jnp.broadcast_to(a, (count, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
            for a, axis in zip(arrays, axes, strict=True)
        )
        return primitive.bind(*whole, **static), 0

    compiled = jax.jit(primitive.bind, static_argnames=("window", "geometry", "size"))

    def implementation(*arrays, **static):
        with jax.disable_jit(False):  # where it is disabled, a primitive is still compiled, as JAX's own are
            return compiled(*arrays, **static)

    primitive.def_impl(implementation)
    primitive.def_abstract_eval(lambda a, *first, **static: a.update(shape=shape(a.shape, **static)))
    mlir.register_lowering(primitive, mlir.lower_fun(of_images, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


collect_p = _primitive(_collect, lambda x, window, geometry: (*x[:-3], *geometry.output(x[-3:-1], window), x[-1]))
spread_p = _primitive(_spread, lambda dy, window, geometry, size: (*dy[:-3], *size, dy[-1]))


def _linear(primitive, transpose):
    """In the first operand; the numbers of taps have no derivative."""

    def jvp(primals, tangents, **static):
        (x, *first), (dx, *_) = primals, tangents
        return primitive.bind(x, *first, **static), primitive.bind(ad.instantiate_zeros(dx), *first, **static)

    ad.deflinear2(primitive, lambda dy, x, *first, **static: [transpose(dy, x, *first, **static)] + [None] * len(first))
    ad.primitive_jvps[primitive] = jvp


_linear(collect_p, lambda dy, x, *first, **static: spread_p.bind(dy, *first, size=x.aval.shape[-3:-1], **static))
_linear(spread_p, lambda dx, dy, *first, size, **static: collect_p.bind(dx, *first, **static))
