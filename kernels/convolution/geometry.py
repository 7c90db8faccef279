"""What a convolution's arguments mean, resolved and checked once for every implementation."""

from collections.abc import Sequence
from typing import NamedTuple

Pair = tuple[int, int]
Padding = str | int | Sequence[int | Sequence[int]]


class Geometry(NamedTuple):
    """Static numbers of a two-dimensional convolution, each a pair for height and width."""

    strides: Pair
    padding: tuple[Pair, Pair]  # (low, high) zeros of each dimension
    dilation: Pair
    groups: int = 1

    def output(self, size: Pair, kernel: Pair) -> Pair:
        """floor((n + low + high - d (k - 1) - 1) / s) + 1 for each dimension."""
        return tuple(
            (n + low + high - d * (k - 1) - 1) // s + 1
            for n, k, s, (low, high), d in zip(size, kernel, self.strides, self.padding, self.dilation, strict=True)
        )


def pair(name: str, value: int | Sequence[int]) -> Pair:
    """An int or a pair as a pair of positive ints.

    >>> pair("strides", 2)
    (2, 2)
    """
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive int or a pair of them, not {value!r}")
    return values


def resolve(padding: Padding, size: Pair, kernel: Pair, strides: Pair, dilation: Pair = (1, 1)) -> tuple[Pair, Pair]:
    """The (low, high) zeros of each dimension.

    'SAME' pads so that the output has ceil(n / stride) rows, the odd zero last, as TensorFlow and lax do.

    >>> resolve("SAME", (5, 6), (3, 3), (2, 2))
    ((1, 1), (0, 1))
    >>> resolve(1, (5, 6), (3, 3), (2, 2))
    ((1, 1), (1, 1))
    """
    if padding == "VALID":
        pairs = ((0, 0), (0, 0))
    elif padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilation, strict=True)
        ]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    elif isinstance(padding, str):
        raise ValueError(f"padding must be 'SAME', 'VALID', an int or pairs of ints, not {padding!r}")
    else:
        sides = (padding, padding) if isinstance(padding, int) else padding
        pairs = tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
        if [len(p) for p in pairs] != [2, 2] or not all(isinstance(v, int) and v >= 0 for p in pairs for v in p):
            raise ValueError(f"padding must be 'SAME', 'VALID', an int >= 0 or two (low, high) pairs, not {padding!r}")
    for n, k, d, (low, high) in zip(size, kernel, dilation, pairs, strict=True):
        if d * (k - 1) + 1 > n + low + high:
            raise ValueError(
                f"window {kernel} with dilation {dilation} is larger than the input {size} with padding {pairs}"
            )
    return pairs
