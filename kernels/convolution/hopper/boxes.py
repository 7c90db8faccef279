"""Boxes of pixels: which rows and columns of an image each tap of a window reads for a box of outputs."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import target
from kernels.attention.hopper.plan import divide
from kernels.convolution.windows import Geometry, Pair

Box = tuple[int, int, int]  # images, rows and columns


class Walk(NamedTuple):
    """One axis of a window: tap i of output p reads the pixel stride p + base + step i."""

    count: int
    base: int
    step: int
    stride: int = 1

    @property
    def low(self) -> int:
        """The first pixel that any tap reads for output 0, in whole strides."""
        return min(self.base, self.base + self.step * (self.count - 1)) // self.stride

    @property
    def span(self) -> int:
        """Whole strides from the first to the last pixel that the taps read."""
        return max(self.base, self.base + self.step * (self.count - 1)) // self.stride - self.low

    def place(self, tap):
        """The pixel that a tap reads for output 0: how many whole strides from pixel 0, and how many pixels on."""
        if isinstance(tap, int):
            return divmod(self.base + self.step * tap, self.stride)
        whole, rest = divide(tap * np.int32(self.step) + np.int32(self.base - self.low * self.stride), self.stride)
        return whole + np.int32(self.low), rest


def shift(walk: Walk) -> Any:
    """Where pixel 0 is in a `view`."""
    return np.int32(_before(walk) if target.interpreter() is not None else 0)


def _before(walk):
    """Strides before pixel 0 that are read."""
    return max(0, -walk.low)


def walks(geometry: Geometry, kernel: Pair) -> tuple[Walk, Walk]:
    """Of a window over its input: s p + d i - low."""
    sides = zip(kernel, geometry.padding, geometry.dilation, geometry.strides, strict=True)
    return tuple(Walk(k, -low, dilation, stride) for k, (low, _), dilation, stride in sides)


def backward(kernel: int, low: int, dilation: int, stride: int, phase: int) -> tuple[slice, Walk]:
    """Of the inputs s p + phase, the taps that see any, and the walk over the outputs that do.

    Tap i sees such an input from output p + (phase + low - d i) / s, if s divides that.

    >>> backward(3, 1, 1, 2, 0)
    (slice(1, None, 2), Walk(count=1, base=0, step=-1, stride=1))
    """
    every = stride // math.gcd(stride, dilation)
    first = next((i for i in range(min(kernel, every)) if (phase + low - dilation * i) % stride == 0), kernel)
    count = len(range(first, kernel, every))
    return slice(first, None, every), Walk(
        count, (phase + low - dilation * first) // stride, -dilation * every // stride
    )


class Part(NamedTuple):
    """Outputs that see the same taps: which rows and columns of the kernel, and their walks."""

    rows: slice
    columns: slice
    walks: tuple[Walk, Walk]

    @property
    def taps(self) -> int:
        return self.walks[0].count * self.walks[1].count


def whole(walks: tuple[Walk, Walk]) -> dict[Pair, Part]:
    """All outputs see all taps."""
    return {(0, 0): Part(slice(0, None, 1), slice(0, None, 1), walks)}


def phases(geometry: Geometry, kernel: Pair) -> dict[Pair, Part]:
    """Of each phase of a window's inputs, the taps that see it, and the walks over the outputs that do."""
    sides = list(zip(kernel, geometry.padding, geometry.dilation, geometry.strides, strict=True))
    found = {}
    for at in itertools.product(*map(range, geometry.strides)):
        pairs = [backward(k, low, d, s, u) for (k, (low, _), d, s), u in zip(sides, at, strict=True)]
        (rows, columns), walks = zip(*pairs, strict=True)
        found[at] = Part(rows, columns, walks)
    return found


def hull(parts: dict[Pair, Part]) -> tuple[Walk, Walk]:
    """Walks over all pixels that the taps of any part read, one next to the other."""
    found = []
    for axis in range(2):
        walks = [part.walks[axis] for part in parts.values() if part.taps]
        low, high = min(walk.low for walk in walks), max(walk.low + walk.span for walk in walks)
        found.append(Walk(high - low + 1, low, 1))
    return tuple(found)


def extent(geometry: Geometry, size: Pair) -> Pair:
    """The largest of the parts of a size."""
    return tuple(-(-n // s) for n, s in zip(size, geometry.strides, strict=True))


@functools.cache
def fit(sizes: Box, most: int, whole: int = 1) -> Box:
    """The box of at most so many pixels, a multiple of `whole`, of which the fewest cover the images; of those the
    widest.

    >>> fit((32, 14, 14), 128)
    (32, 2, 2)
    """
    images, height, width = sizes
    found = []
    for columns in range(1, min(width, most) + 1):
        for rows in range(1, min(height, most // columns) + 1):
            unit = whole // math.gcd(whole, rows * columns)
            number = min(most // (rows * columns), -(-images // unit) * unit) // unit * unit
            if number:
                box = number, rows, columns
                found.append((math.prod(count(sizes, box)), -columns, -rows, box))
    return min(found)[-1] if found else (whole, 1, 1)


def count(sizes: Box, box: Box) -> Box:
    """How many boxes cover the images, along each axis."""
    return tuple(-(-n // b) for n, b in zip(sizes, box, strict=True))


def start(number, counts: Box, box: Box):
    """The first image, row and column of a box."""
    rest, column = divide(number, counts[2])
    image, row = divide(rest, counts[1])
    return tuple(n * np.int32(size) for n, size in zip((image, row, column), box, strict=True))


def seen(walks: tuple[Walk, Walk], tap, start, box: Box, channel, channels: int, chunk: int):
    """What of a `view` a tap reads for a box of outputs: `chunk` channels from one of `channels` on."""
    i, j = divide(tap, walks[1].count)
    (a, phase), (b, side) = walks[0].place(i), walks[1].place(j)
    a, b = a + shift(walks[0]), b + shift(walks[1])
    (image, row, column), (images, rows, columns) = start, box
    inside = pl.ds(side * np.int32(channels) + channel, chunk)
    return pl.ds(image, images), pl.ds(row + a, rows), phase, pl.ds(column + b, columns), inside


def view(x: jax.Array, walks: tuple[Walk, Walk]) -> jax.Array:
    """(N, H, W, C) as (N, H / s, s, W / s, s C): the pixels that a tap reads, s apart, are a box of it.

    TMA reads 0 before the first and after the last pixel, but not along an axis of 1, which has no coordinate. The
    interpreter reads 0 only after the last: it gets those before.
    """
    pad = []
    for walk, size in zip(walks, x.shape[1:3], strict=True):
        before = _before(walk) * walk.stride if target.interpreter() is not None else 0
        single = before + size <= walk.stride and (walk.low, walk.span) != (0, 0)
        pad.append((before, -(before + size) % walk.stride + single * walk.stride))
    x = jnp.pad(x, ((0, 0), *pad, (0, 0))) if any(map(any, pad)) else x
    (sh, sw), (images, height, width, channels) = (walk.stride for walk in walks), x.shape
    return x.reshape(images, height // sh, sh, width // sw, sw * channels)


def covered(sizes: Box, box: Box) -> Box:
    """The shape of an output that boxes are written to: TMA writes nothing beyond it, and the interpreter can't."""
    if target.interpreter() is None:
        return sizes
    return tuple(n * b for n, b in zip(count(sizes, box), box, strict=True))


def cut(y: jax.Array, sizes: Box) -> jax.Array:
    """What `covered` has added cut off again."""
    return lax.slice(y, [0] * y.ndim, (*sizes, *y.shape[3:])) if y.shape[:3] != sizes else y
