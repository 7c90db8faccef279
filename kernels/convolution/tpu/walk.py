"""What the outputs of a convolution or a pooling see of its inputs, along one axis: forward and backward.

Both are one form. Inputs come in `ins` phases, outputs in `outs`, and unit u of the outputs sees units u + offset:

    y[outs u + o] = sum over taps (o, i, phase, offset) of x[ins (u + offset) + phase - low] w[i]

so a stride is a choice of phase, and nothing is multiplied by zeros that a stride has put in.
"""

from collections.abc import Iterable
from typing import NamedTuple

from kernels.convolution.windows import Geometry, Pair


class Walk(NamedTuple):
    """One axis; low: zeros before the first input (inputs that are cut, if negative); count: units of output."""

    low: int
    ins: int
    outs: int
    count: int
    taps: tuple[tuple[int, int, int, int], ...]  # (o, i, phase, offset), offsets from 0

    @property
    def halo(self) -> int:
        """How many units further than the last output's the inputs reach."""
        return max((tap[3] for tap in self.taps), default=0)


def axis(low: int, stride: int, count: int, positions: Iterable[int]) -> Walk:
    """Output p sees the inputs s p + position - low: in phase (position mod s), at p + floor(position / s)."""
    return Walk(low, stride, 1, count, tuple((0, i, at % stride, at // stride) for i, at in enumerate(positions)))


def forward(geometry: Geometry, size: Pair, kernel: Pair) -> tuple[Walk, Walk]:
    """Output p sees the inputs s p + d i - low."""
    sides = zip(*geometry[:3], kernel, geometry.output(size, kernel), strict=True)
    return tuple(axis(low, s, count, range(0, d * k, d)) for s, (low, _), d, k, count in sides)


def backward(geometry: Geometry, size: Pair, kernel: Pair) -> tuple[Walk, Walk]:
    """Input h = s u + o was seen through tap i by output p = u + (o + low - d i) / s, if that is an integer."""
    walks = []
    for s, (low, _), d, k, n in zip(*geometry[:3], kernel, size, strict=True):
        seen = [(o, i, (o + low - d * i) // s) for o in range(s) for i in range(k) if (o + low - d * i) % s == 0]
        first = min(offset for *_, offset in seen)
        walks.append(Walk(-first, 1, s, -(-n // s), tuple((o, i, 0, offset - first) for o, i, offset in seen)))
    return tuple(walks)
