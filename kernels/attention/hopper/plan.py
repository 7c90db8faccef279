"""What a kernel is compiled for: the problem, the sizes of its tiles, and the order in which blocks take their work."""

from typing import Any, NamedTuple

import numpy as np
from jax import lax

from kernels.attention.hopper import machine
from kernels.attention.request import Request

MEMORY = 220 * 1024  # of 227 KiB of shared memory that a block may have: barriers and vectors take some too
CACHE = 24 << 20  # of the 50 MiB of L2, for the keys and values that blocks running together share
BLOCKS = (128, 64, 32)  # rows of a streamed tile
LOG2E = float(np.log2(np.e))


class Plan(NamedTuple):
    """A pass over attention. A block keeps `rows` of one side (queries, or keys) and streams the other side's tiles.

    Fields:
      sizes: B, T, S, N and K; depth: of a head, padded to whole swizzles.
      parts, dtype: how many 16-bit numbers sum up to one of the inputs, and which.
      warpgroups: of 64 rows each, that compute.
      block: rows of a streamed tile; stages: how many tiles are under way.
      flipped: whether the rows are keys and the columns queries.
      biased: whether there is a bias.
      slice: first column and number of columns of the depth that a pass sums up.
    """

    request: Request
    sizes: tuple[int, int, int, int, int]
    depth: int
    parts: int
    dtype: Any
    warpgroups: int
    block: int
    stages: int
    flipped: bool
    biased: bool
    slice: tuple[int, int]

    @property
    def rows(self) -> int:
        """Rows of the side that a block keeps."""
        return self.warpgroups * machine.WARPGROUP

    @property
    def shape(self) -> tuple[int, int]:
        """Of a warpgroup's tile of scores."""
        return machine.WARPGROUP, self.block

    @property
    def swizzle(self) -> int:
        """Bytes of a row of the tiles that wgmma reads, one number for all operands, and no longer than either side."""
        return next(n for n in (128, 64, 32) if 2 * self.depth % n == 0 and 2 * self.block % n == 0)

    @property
    def members(self) -> int:
        """Query heads that share one of keys and values."""
        return self.sizes[3] // self.sizes[4]

    @property
    def count(self) -> tuple[int, int]:
        """How many blocks of rows there are, and how many tiles of columns."""
        length, span = self.sizes[2:0:-1] if self.flipped else self.sizes[1:3]
        return -(-length // self.rows), -(-span // self.block)

    @property
    def slices(self) -> list["Plan"]:
        """A plan for each slice of the depth of which registers hold the sums beside all else."""
        size = 256 // self.parts
        return [self._replace(slice=(start, min(size, self.depth - start))) for start in range(0, self.depth, size)]

    @property
    def factor(self) -> float:
        """What brings q k to the exponent of 2 after all else is done: see `scores.exponents`."""
        request = self.request
        return request.scale * LOG2E if self.linear else 1.0

    @property
    def linear(self) -> bool:
        """Whether the exponent is q k times a positive number, which then waits until the maximum is subtracted."""
        return self.request.soft_cap is None and not self.biased and self.request.scale > 0


def blocks(depth: int, parts: int, kept: int, largest: int) -> tuple[int, int, int]:
    """Warpgroups, stages and rows of a streamed tile, such that `kept` matrices of 64 rows for each warpgroup and the
    stages of two streamed ones fit into shared memory.
    """
    row = 2 * depth * parts  # bytes
    for stages, warpgroups in ((2, 2), (2, 1), (1, 2), (1, 1)):
        for block in BLOCKS:
            held = kept * machine.WARPGROUP * warpgroups + 2 * stages * block  # rows
            if block <= largest and row * held <= MEMORY:
                return warpgroups, stages, block
    raise ValueError(f"heads of {depth} do not fit")


def item(plan: Plan, heads: int):
    """Example, head and block of rows of this block of threads.

    Blocks start in order. Those of one head share its keys and values, so a chunk of heads goes first whose keys and
    values fit into L2; within it the last rows go first, to which causality leaves most to do.
    """
    batch, span, depth = plan.sizes[0], plan.sizes[2], plan.depth
    total, each = batch * heads, max(1, CACHE // (4 * span * depth * plan.parts) * (heads // plan.sizes[4]))
    chunk = max(n for n in range(1, total + 1) if total % n == 0 and n <= each)
    number, tiles = lax.axis_index("item"), plan.count[0]
    piece, rest = divide(number, chunk * tiles)
    back, head = divide(rest, chunk)
    batch, head = divide(piece * np.int32(chunk) + head, heads)
    return batch, head, np.int32(tiles - 1) - back if not plan.flipped else back


def divide(x, by: int):
    """Quotient and remainder of what is not negative."""
    x = lax.convert_element_type(x, np.int32)  # a loop of one step counts in Python
    return lax.div(x, np.int32(by)), lax.rem(x, np.int32(by))
