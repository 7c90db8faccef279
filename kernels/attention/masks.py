"""Which query may attend to which key: one algebra for all backends.

A mask is a conjunction of rules on query i and key j of example b and head h. Tiles of it are empty (nothing may be
attended to: skipped), full (everything may: nothing to mask), or partial.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EMPTY, PARTIAL, FULL = range(3)


class Band(NamedTuple):
    """low <= j - i <= high, an end None where there is none: what causality and a local window come to.

    >>> Band(None, 0).meet(Band(-8, 8))
    Band(low=-8, high=0)
    """

    low: int | None = None
    high: int | None = None

    def meet(self, other: "Band") -> "Band":
        """Both at once."""
        low = [end for end in (self.low, other.low) if end is not None]
        high = [end for end in (self.high, other.high) if end is not None]
        return Band(max(low, default=None), min(high, default=None))


class Mask(NamedTuple):
    """The rules that depend on data, each None where there is none.

    Fields:
      query_lengths, key_lengths: (B,) int32, i < query_lengths[b] and j < key_lengths[b].
      query_segments, key_segments: (B, T) and (B, S) int32, equal at i and j.
      dense: (B or 1, N or 1, T or 1, S or 1) bool.
    """

    query_lengths: Any = None
    key_lengths: Any = None
    query_segments: Any = None
    key_segments: Any = None
    dense: Any = None


def rules(band: Band, rows, columns, limit: tuple, mask: Mask):
    """The rules on the queries and keys of these numbers: bool of the broadcast shape, None where there is no rule.

    limit: T and S, None where no padding follows; mask: its values for these queries and keys, arrays of one rank.
    """
    found = []
    if band.low is not None:
        found.append(columns - rows >= band.low)
    if band.high is not None:
        found.append(columns - rows <= band.high)
    for numbers, ends in ((rows, (limit[0], mask.query_lengths)), (columns, (limit[1], mask.key_lengths))):
        found += [numbers < end for end in ends if end is not None]
    if mask.query_segments is not None:
        found.append(mask.query_segments == mask.key_segments)
    if mask.dense is not None:
        found.append(mask.dense)
    return functools.reduce(operator.and_, found) if found else None


def allowed(band: Band, mask: Mask, start: tuple, size: tuple[int, int], limit: tuple[int, int]):
    """The rules on one tile: bool, broadcastable to (B, N, *size); None where there is no rule.

    start: the first query and key, which may be traced; size: of the tile; limit: (T, S), beyond which is padding. The
    arrays of the mask may be padded too, and must be if the tile passes the limit.
    """
    rows = (start[0] + jnp.arange(size[0], dtype=jnp.int32))[None, None, :, None]  # (1, 1, q, 1)
    columns = (start[1] + jnp.arange(size[1], dtype=jnp.int32))[None, None, None, :]  # (1, 1, 1, k)
    here = Mask(*(None if x is None else x[:, None, None, None] for x in mask[:2]))
    if mask.query_segments is not None:
        queries = jax.lax.dynamic_slice_in_dim(mask.query_segments, start[0], size[0], 1)[:, None, :, None]
        keys = jax.lax.dynamic_slice_in_dim(mask.key_segments, start[1], size[1], 1)[:, None, None, :]
        here = here._replace(query_segments=queries, key_segments=keys)
    if mask.dense is not None:
        here = here._replace(dense=window(mask.dense, start, size))
    ends = tuple(end if end != n and end % n else None for end, n in zip(limit, size, strict=True))
    return rules(band, rows, columns, ends, here)


def window(x: jax.Array, start: tuple, size: tuple[int, int]) -> jax.Array:
    """A tile of (.., T or 1, S or 1), whole along an axis of 1."""
    for axis in (2, 3):
        if x.shape[axis] != 1:
            x = jax.lax.dynamic_slice_in_dim(x, start[axis - 2], size[axis - 2], axis)
    return x


def tiles(band: Band, mask: Mask, size: tuple[int, int], limit: tuple[int, int]) -> jax.Array:
    """The kind of each tile, (B or 1, N or 1, T / q, S / k) int32, the sizes rounded up.

    Segments count as disjoint where the ranges of their numbers are, and as one where both are a single number. A tile
    that is called partial may be empty or full, by several rules together; never the other way.
    """
    (q, k), (length, keys) = size, limit
    some, every = (jnp.asarray(x)[None, None] for x in band_tiles(band, size, limit))
    first_row, first_column = (jnp.asarray(x) for x in _corners(size, limit))
    last_row, last_column = jnp.minimum(first_row + q, length) - 1, jnp.minimum(first_column + k, keys) - 1
    for lengths, first, last in (
        (mask.query_lengths, first_row, last_row),
        (mask.key_lengths, first_column, last_column),
    ):
        if lengths is not None:
            lengths = lengths[:, None, None, None]  # (B, 1, 1, 1)
            some, every = some & (first[None, None] < lengths), every & (last[None, None] < lengths)
    if mask.query_segments is not None:
        low_q, high_q = _ranges(mask.query_segments, length, q)  # (B, T / q)
        low_k, high_k = _ranges(mask.key_segments, keys, k)  # (B, S / k)
        low_q, high_q, low_k, high_k = low_q[:, :, None], high_q[:, :, None], low_k[:, None, :], high_k[:, None, :]
        some = some & ((low_q <= high_k) & (low_k <= high_q))[:, None]
        every = every & ((low_q == high_k) & (low_k == high_q))[:, None]
    if mask.dense is not None:
        some = some & _pooled(mask.dense, size, limit, jnp.any)
        every = every & _pooled(mask.dense, size, limit, jnp.all)
    return jnp.where(every, FULL, jnp.where(some, PARTIAL, EMPTY)).astype(jnp.int32)


def band_tiles(band: Band, size: tuple[int, int], limit: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the band leaves something of each tile, and whether everything: (T / q, S / k) bool, known at once.

    A tile that passes the limit holds padding, and is never full.
    """
    (q, k), (length, keys) = size, limit
    rows, columns = _corners(size, limit)
    last_row, last_column = np.minimum(rows + q, length) - 1, np.minimum(columns + k, keys) - 1
    least, most = columns - last_row, last_column - rows  # of j - i in a tile
    some, every = np.ones(least.shape, bool), (rows + q <= length) & (columns + k <= keys)
    if band.low is not None:
        some, every = some & (most >= band.low), every & (least >= band.low)
    if band.high is not None:
        some, every = some & (least <= band.high), every & (most <= band.high)
    return some, every


def _corners(size, limit):
    """The first query and the first key of each tile, (T / q, 1) and (1, S / k)."""
    rows, columns = (np.arange(0, whole, n, dtype=np.int32) for whole, n in zip(limit, size, strict=True))
    return rows[:, None], columns[None, :]


def _ranges(numbers, length, size):
    """Least and greatest of each block of (B, length), what lies beyond the length left out."""
    blocks = -(-length // size)
    padded = jnp.pad(numbers[:, :length], ((0, 0), (0, blocks * size - length)), mode="edge")
    padded = padded.reshape(-1, blocks, size)  # (B, blocks, size)
    return padded.min(axis=-1), padded.max(axis=-1)


def _pooled(dense, size, limit, reduce):
    """`reduce` over each tile of a dense mask, (B or 1, N or 1, T / q or 1, S / k or 1)."""
    for axis in (2, 3):
        length, block = limit[axis - 2], size[axis - 2]
        if dense.shape[axis] == 1:
            continue
        blocks = -(-length // block)
        dense = jax.lax.slice_in_dim(dense, 0, length, axis=axis)
        widths = [(0, 0)] * 4
        widths[axis] = (0, blocks * block - length)
        dense = jnp.pad(dense, widths, mode="edge")
        dense = dense.reshape(*dense.shape[:axis], blocks, block, *dense.shape[axis + 1 :])
        dense = reduce(dense, axis=axis + 1)
    return dense
