"""The inputs of attention laid out for a TPU's kernels, and the order in which a kernel visits the tiles of scores."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import target
from kernels.attention import masks
from kernels.attention.request import Arrays, Request

LANES = 128  # of a vector register: what the sizes of tiles are multiples of
FORWARD = (512, 1024)  # queries and keys that a step of the grid loads
PARTS = 2  # that it takes the keys in: while the MXU is at one, the vector unit is at the one before
BACKWARD = (1024, 512)
TABLE = 2**16  # kinds of tiles that scalar memory has room for


class Plan(NamedTuple):
    """Fields:

    scalars: what index maps and kernels read from scalar memory, name: 1-D int32. The tiles that the band leaves, in
      the order of the visit (rows, columns: (L,)), the kind of each (kinds: (B or 1, N or 1, L) in a row), lengths,
      seeds, and the heads' numbers if they are not b N + n.
    inputs: name: array, padded with zeros to whole tiles, heads before time: query and d_out (B, N, T', D), key and
      value (B, K, S', D), lse and delta (B, N, 1, T'), segments (B, 1, T') and (B, 1, S'), bias and dense
      (B or 1, N or 1, T' or 1, S' or 1), the last two the other way round if turned.
    shape: (B, N, K, D); size: (q, k) of a tile; limit: (T, S).
    turned: whether a tile of scores is (k, q) rather than (q, k).
    varied: whether the kinds vary with the example, and with the head.
    visits: L; masked: whether there is a rule at all; biased: whether there is a bias.
    """

    request: Request
    scalars: dict[str, Any]
    inputs: dict[str, Any]
    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    limit: tuple[int, int]
    turned: bool
    varied: tuple[bool, bool]
    visits: int
    masked: bool
    biased: bool

    @property
    def padded(self) -> tuple[int, int]:
        """T' and S'."""
        return tuple(-(-whole // n) * n for whole, n in zip(self.limit, self.size, strict=True))

    def kind(self, scalars, b, n, visit):
        """Of a tile; `scalars` are the refs of `self.scalars`."""
        heads = self.shape[1] if self.varied[1] else 1
        example = (b if self.varied[0] else 0) * heads + (n if self.varied[1] else 0)
        return scalars["kinds"][example * self.visits + visit]

    def specs(self, place: Callable) -> dict[str, pl.BlockSpec]:
        """The block of each input that a step works on; `place` gives its (b, n, i, j) from program ids and scalars."""
        (_, heads, groups, depth), (q, k) = self.shape, self.size

        def spec(block, index):
            return pl.BlockSpec(block, lambda *ids: index(*place(*ids)))

        def table(x):
            """Of a bias or dense mask, which may have axes of 1."""
            order = (0, 1, 3, 2) if self.turned else (0, 1, 2, 3)
            block = [None, None, *(size if x.shape[2 + a] > 1 else 1 for a, size in enumerate(self._turn(q, k)))]
            return spec(
                block,
                lambda *at: tuple(at[axis] if x.shape[a] > 1 else 0 for a, axis in enumerate(order)),
            )

        rows = spec((None, None, q, depth), lambda b, n, i, j: (b, n, i, 0))
        columns = spec((None, None, k, depth), lambda b, n, i, j: (b, n * groups // heads, j, 0))
        statistics = spec((None, None, 1, q), lambda b, n, i, j: (b, n, 0, i))
        known = {
            "query": rows,
            "d_out": rows,
            "key": columns,
            "value": columns,
            "lse": statistics,
            "delta": statistics,
            "query_segments": spec((None, 1, q), lambda b, n, i, j: (b, 0, i)),
            "key_segments": spec((None, 1, k), lambda b, n, i, j: (b, 0, j)),
        }
        return {name: table(x) if name in ("bias", "dense") else known[name] for name, x in self.inputs.items()}

    def _turn(self, q, k):
        return (k, q) if self.turned else (q, k)

    def call(
        self, kernel: Callable, name: str, grid, place, out_specs, out_shape, scratch, parallel: int, products: int
    ) -> Any:
        """Run kernel(scalars, inputs, *outputs, *scratch) over a grid, of which the first axes are parallel.

        products: of matrices for a tile of scores; XLA, which cannot see them, plans by them.
        """
        # Within shard_map a result differs from device to device where the inputs do.
        kind = jax.typeof(self.inputs["query"]).manual_axis_type
        out_shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind), out_shape)
        semantics = ("parallel",) * parallel + ("arbitrary",) * (len(grid) - parallel)
        return pl.pallas_call(
            functools.partial(kernel, self._replace(scalars={}, inputs={})),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=grid,
                in_specs=[self.specs(place)],
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            out_shape=out_shape,
            compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
            cost_estimate=self._estimate(products),
            interpret=target.interpreter() or False,
            name=name,
        )(self.scalars, self.inputs)

    def _estimate(self, products: int) -> pl.CostEstimate:
        """Of all tiles that are visited: products of (q, D) by (D, k), an exponential a score, keys and values read."""
        (batch, heads, _, depth), (q, k) = self.shape, self.size
        tiles = batch * heads * self.visits
        size = self.inputs["key"].dtype.itemsize
        return pl.CostEstimate(
            flops=tiles * products * 2 * q * k * depth,
            transcendentals=tiles * q * k,
            bytes_accessed=tiles * 2 * k * depth * size + 2 * batch * heads * self.padded[0] * depth * size,
        )


def fit(tile: tuple[int, int], limit: tuple[int, int], dtype) -> tuple[int, int]:
    """Tiles no larger than asked for, of which the fewest cover (T, S) with the least padding.

    A product of float32 takes six passes, all of them instructions: a quarter of the tile is work enough for a step.
    """
    tile = tuple(max(n // 2, LANES) for n in tile) if dtype != jnp.bfloat16 else tile
    return tuple(-(-whole // -(-whole // n) // LANES) * LANES for n, whole in zip(tile, limit, strict=True))


def parts(count: int) -> list[slice]:
    """The keys of a tile in PARTS, each of whole vector registers."""
    size = -(-count // PARTS // LANES) * LANES
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def lay_out(request: Request, arrays: Arrays, tile: tuple[int, int], turned=False, whole=False, **more) -> Plan:
    """The Plan for tiles of about this size; the visits go along rows of tiles, or down columns if turned.

    whole: whether to visit the tiles too that the band leaves out, row by row.
    more: d_out (B, T, N, D), lse and delta (B, N, T), for the backward pass.
    """
    query, key, value, bias, mask, seeds, numbers = arrays
    (batch, length, heads, depth), (span, groups) = query.shape, key.shape[1:3]
    limit = (length, span)
    size = fit(tile, limit, query.dtype)
    padded = [-(-whole // n) * n for whole, n in zip(limit, size, strict=True)]

    def pad(x, axis, which, value=0):
        return _pad(x, axis, padded[which] - limit[which], value)

    def heads_first(x, which):
        """(B, T, N, D) as (B, N, T', D): zeros beyond the lengths, so that what lies there cannot matter."""
        ends = (mask.query_lengths, mask.key_lengths)[which]
        if ends is not None:
            number = jnp.arange(limit[which], dtype=jnp.int32)[None, :, None, None]
            x = jnp.where(number < ends[:, None, None, None], x, jnp.zeros((), x.dtype))
        x = x.astype(jnp.float32) if x.dtype == jnp.float16 else x  # of which not every TPU has matrix products
        return pad(x.transpose(0, 2, 1, 3), 2, which)

    def table(x, dtype):
        """A bias or dense mask; with an axis of 1, which no packed dtype likes, of 32 bits."""
        if 1 in x.shape[2:]:
            dtype = jnp.int32 if dtype == jnp.int8 else jnp.float32
        x = x.astype(dtype)
        for which in (0, 1):
            x = x if x.shape[2 + which] == 1 else pad(x, 2 + which, which)
        return x.swapaxes(2, 3) if turned else x

    inputs = {"query": heads_first(query, 0), "key": heads_first(key, 1), "value": heads_first(value, 1)}
    if mask.query_segments is not None:
        inputs["query_segments"] = pad(mask.query_segments, 1, 0)[:, None]
        inputs["key_segments"] = pad(mask.key_segments, 1, 1)[:, None]
    if mask.dense is not None:
        inputs["dense"] = table(mask.dense, jnp.int8)
    if bias is not None:
        inputs["bias"] = table(bias, jnp.bfloat16 if bias.dtype == jnp.bfloat16 else jnp.float32)
    if more:
        inputs["d_out"] = heads_first(more["d_out"], 0)
        # exp(s - inf) = 0 is what the weights are in a row that has nothing to attend to, and in the padding.
        lse = jnp.where(jnp.isfinite(more["lse"]), more["lse"], jnp.inf)
        inputs["lse"] = pad(lse, 2, 0, jnp.inf)[:, :, None]
        inputs["delta"] = pad(more["delta"], 2, 0)[:, :, None]

    left, _ = masks.band_tiles(request.band, size, limit)  # (T' / q, S' / k)
    rows, columns = _visits(left | whole, turned)
    kinds = masks.tiles(request.band, mask, size, limit)  # (B or 1, N or 1, T' / q, S' / k)
    kinds = jnp.broadcast_to(kinds, (*kinds.shape[:2], *left.shape))
    if kinds.shape[0] * kinds.shape[1] * len(rows) > TABLE:
        # Too many to tell apart: none is skipped but by the band, and all are masked.
        some = jnp.asarray(np.where(left, masks.PARTIAL, masks.EMPTY), jnp.int32)
        kinds = some[None, None]
    scalars = {
        "rows": jnp.asarray(rows, jnp.int32),
        "columns": jnp.asarray(columns, jnp.int32),
        "kinds": kinds[:, :, rows, columns].reshape(-1),
    }
    for name in ("query_lengths", "key_lengths"):
        if getattr(mask, name) is not None:
            scalars[name] = getattr(mask, name)
    if seeds is not None:
        scalars["seeds"] = jax.lax.bitcast_convert_type(seeds, jnp.int32)
    if seeds is not None and numbers is not None:
        scalars["heads"] = numbers.reshape(-1)
    return Plan(
        request=request,
        scalars=scalars,
        inputs=inputs,
        shape=(batch, heads, groups, depth),
        size=size,
        limit=limit,
        turned=turned,
        varied=(kinds.shape[0] > 1, kinds.shape[1] > 1),
        visits=len(rows),
        biased=bias is not None,
        masked=any(x is not None for x in (*request.band, *mask)) or span % size[1] > 0,
    )


def _pad(x, axis, count, value=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count)
    return jnp.pad(x, widths, constant_values=jnp.asarray(value, x.dtype)) if count else x


def _visits(some: np.ndarray, by_column: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each tile that is not empty; one at least of each row (or column), which has an output."""
    some = some.T if by_column else some
    some = some | (~some.any(axis=1, keepdims=True) & (np.arange(some.shape[1]) == 0))
    outer, inner = np.nonzero(some)
    return (inner, outer) if by_column else (outer, inner)
