"""Windows that slide over images: what their arguments mean, and what they see."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

DTYPES = (jnp.float32, jnp.bfloat16)  # of kernels; what XLA compiles has float64 too
Pair = tuple[int, int]
Pairs = tuple[Pair, Pair]
Padding = str | int | Sequence[int | Sequence[int]]


class Geometry(NamedTuple):
    """The static numbers of a convolution or a pooling, one of each for height and width."""

    strides: Pair
    padding: Pairs  # (low, high): the rows or columns added before and after
    dilation: Pair = (1, 1)
    groups: int = 1

    def reach(self, kernel: Pair) -> Pair:
        """d (k - 1): how far the window reaches past its first tap."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True))

    def output(self, size: Pair, kernel: Pair) -> Pair:
        """floor((n + low + high - d (k - 1) - 1) / s) + 1."""
        return tuple(
            (n + low + high - r - 1) // s + 1
            for n, (low, high), r, s in zip(size, self.padding, self.reach(kernel), self.strides, strict=True)
        )


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """That of sums of such numbers: float32, or float64 if they are."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def pair(name: str, value: int | Sequence[int]) -> Pair:
    """A positive int, or a pair of them, as a pair.

    >>> pair("strides", 2)
    (2, 2)
    """
    values = (value, value) if isinstance(value, int) else _items(value)
    if len(values) != 2 or not all(isinstance(v, int) and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive int or a pair of them, not {value!r}")
    return values


def geometry(
    size: Pair,
    kernel: Pair,
    strides: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """Every argument in full.

    'SAME' pads for ceil(n / s) outputs, an odd zero last, as TensorFlow and `jax.lax` do.

    >>> geometry((5, 6), (3, 3), 2, "SAME").padding
    ((1, 1), (0, 1))

    Raises:
      ValueError: a stride, dilation or padding that is none, or a window larger than the padded input.
    """
    strides, dilation = pair("strides", strides), pair("dilation", dilation)
    resolved = Geometry(strides, _pairs(padding, size, kernel, strides, dilation), dilation, groups)
    if min(resolved.output(size, kernel)) < 1:
        raise ValueError(
            f"window {kernel} with dilation {dilation} is larger than the input {size} with padding {resolved.padding}"
        )
    return resolved


def _pairs(padding: Padding, size: Pair, kernel: Pair, strides: Pair, dilation: Pair) -> Pairs:
    if padding == "VALID":
        return ((0, 0), (0, 0))
    if padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilation, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)
    sides = (padding, padding) if isinstance(padding, int) else _items(padding)
    pairs = tuple((side, side) if isinstance(side, int) else _items(side) for side in sides)
    if [len(p) for p in pairs] != [2, 2] or not all(isinstance(v, int) and v >= 0 for p in pairs for v in p):
        of = f"for an input {size} and a window {kernel}"
        raise ValueError(f"padding must be 'SAME', 'VALID', an int >= 0 or a (low, high) a side {of}, not {padding!r}")
    return pairs


def _items(value):
    """Those of a sequence; of anything else none."""
    return tuple(value) if isinstance(value, Sequence) else ()


def taps(x: jax.Array, kernel: Pair, geometry: Geometry, fill: float = 0.0) -> Iterator[tuple[Pair, jax.Array]]:
    """For each position (i, j) in the window, what of x (N, H, W, ...) the outputs see there, (N, H', W', ...)."""
    (sh, sw), padding, (dh, dw), _ = geometry
    height, width = geometry.output(x.shape[1:3], kernel)
    x = pad(x, padding, fill)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield (i, j), x[:, dh * i :, dw * j :][:, : sh * (height - 1) + 1 : sh, : sw * (width - 1) + 1 : sw]


def pad(x: jax.Array, sides: Sequence[Sequence[int]], fill: float = 0.0) -> jax.Array:
    """x (N, H, W, ...) with more rows and columns, fewer where a side is negative.

    It is computed before its parts are used: within a loop over all of them, every element would be asked whether it is
    padding.
    """
    if not any(map(any, sides)):
        return x
    sides = ((0, 0, 0), *((*side, 0) for side in sides), *((0, 0, 0),) * (x.ndim - 3))
    return jax.lax.optimization_barrier(jax.lax.pad(x, jnp.asarray(fill, x.dtype), sides))
