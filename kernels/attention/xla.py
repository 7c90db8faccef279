"""Attention a tile of queries and keys at a time, in plain JAX: memory linear in the lengths.

Forward: Rabe and Staats 2021, Self-attention does not need O(n^2) memory; the gradient from the log-sum-exp is that of
Dao et al. 2022, FlashAttention, section 3.1 and appendix B.4.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from kernels import target
from kernels.attention import masks
from kernels.attention.request import Arrays, Request
from kernels.attention.tiling import Grid, Tiling, cut, over_heads

TILE = (512, 512)  # queries and keys: one head's scores, 1 MB, stay in a core's cache
SCORES = 2**20  # of all heads that go through the loops together, where one head's are fewer


def refuses(request: Request, arrays: Arrays) -> str | None:
    """It does everything."""
    return None


def _together(grid: Grid, tiles: Tiling) -> tuple[int, int]:
    """How many examples and key heads go through the loops side by side: on an accelerator, all."""
    batch, groups, members = tiles.q.shape[:3]
    for some in ((batch, groups), (1, groups)):
        if math.prod((*some, members, *grid.size)) <= SCORES or target.device()[0] != "cpu":
            return some
    return 1, 1


def _by_kind(grid: Grid, tiles: Tiling, i, j, attend, carry):
    """The carry after a tile that is skipped if it is empty and masked if it is partial."""
    if not grid.ruled:
        return attend(False, carry)
    kinds = tiles.kinds[:, :, i, j]
    kind = jnp.where((kinds == masks.FULL).all(), masks.FULL, jnp.where((kinds == masks.EMPTY).all(), masks.EMPTY, 1))
    skip, partial, full = (
        (lambda carry: carry),
        (lambda carry: attend(True, carry)),
        (lambda carry: attend(False, carry)),
    )
    return lax.switch(kind, (skip, partial, full), carry)


def forward(request: Request, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T)."""
    grid, tiles = cut(request, arrays, TILE)
    wide, (batch, length, heads, _) = grid.wide, arrays.query.shape

    def step(carry, tiles):
        queries = jnp.moveaxis(tiles.q, 4, 2)  # (B, K, D, G, T')

        def row(i):
            """One tile of queries against all keys: (B, K, D, G, q) and (B, K, 1, G, q)."""
            q = grid.queries(queries, i)

            def column(j, carry):
                k, v = grid.keys(tiles.k, j, 2), grid.keys(tiles.v, j, 2)  # (B, K, k, D)

                def attend(masked, carry):
                    out, top, total = carry
                    scores, _ = grid.scores(tiles, i, j, q, k, masked)  # (B, K, k, G, q)
                    higher = jnp.maximum(top, scores.max(axis=2, keepdims=True))
                    shift = jnp.where(jnp.isfinite(higher), higher, 0.0)  # a row with nothing to attend to yet
                    weights, decay = jnp.exp(scores - shift), jnp.exp(top - shift)
                    total = total * decay + weights.sum(axis=2, keepdims=True)
                    if request.dropout_rate:
                        kept = grid.kept(tiles, arrays.seeds, i, j)
                        weights = jnp.where(kept, weights / (1 - request.dropout_rate), 0.0)
                    update = jnp.einsum("bhkd,bhkgq->bhdgq", v, weights.astype(v.dtype), preferred_element_type=wide)
                    return out * decay + update, higher, total

                return _by_kind(grid, tiles, i, j, attend, carry)

            one = (*q.shape[:2], 1, *q.shape[3:])
            nothing = jnp.zeros_like(q, dtype=wide)  # like q: within shard_map, different on each device
            start = nothing, jnp.full_like(nothing, -jnp.inf, shape=one), jnp.zeros_like(nothing, shape=one)
            out, top, total = lax.fori_loop(*grid.columns(i), column, start)
            some = total > 0
            total = jnp.where(some, total, 1.0)
            return (out / total).astype(arrays.query.dtype), jnp.where(some, top + jnp.log(total), -jnp.inf)

        found = lax.map(row, jnp.arange(grid.count[0], dtype=jnp.int32))  # (T' / q, B, K, D or 1, G, q)
        return carry, jax.tree.map(lambda x: x.transpose(1, 2, 4, 0, 5, 3), found)  # (B, K, G, T' / q, q, D or 1)

    _, (out, lse) = over_heads(step, tiles, None, (batch, arrays.key.shape[2]), _together(grid, tiles))
    out, lse = (x.reshape(batch, heads, -1, x.shape[-1])[:, :, :length] for x in (out, lse))
    return out.swapaxes(1, 2), lse[..., 0]


def backward(request: Request, arrays: Arrays, out, lse, d_out, d_lse):
    """The gradients of query, key, value and bias (None where there is none), from those of output and log-sum-exp.

        P = exp(S - lse),   dV = P' dO,   dS = P (dO V' - rowsum(dO O) + dlse),   dQ = dS K,   dK = dS' Q

    One pass over the tiles, a tile of keys at a time; the gradient of the queries adds up in place. No sum depends on
    the order in which threads come to it.
    """
    grid, tiles = cut(request, arrays, TILE)
    wide, dtype, (batch, length, heads, depth) = grid.wide, tiles.q.dtype, arrays.query.shape
    span, groups = arrays.key.shape[1:3]

    delta = (d_out.astype(wide) * out.astype(wide)).sum(axis=-1).swapaxes(1, 2) - d_lse  # (B, N, T)
    # A row with nothing to attend to has lse -inf, and exp(S - inf) = 0 is what its weights are.
    lse, delta = (_rows(x, tiles)[:, :, None] for x in (jnp.where(jnp.isfinite(lse), lse, jnp.inf), delta))

    def step(d_bias, tree):
        tiles, d_rows, lse, delta = tree
        q_t, d_rows_t = (jnp.moveaxis(x, 4, 2) for x in (tiles.q, d_rows))  # (B, K, D, G, T')

        def column(carry, j):
            k, v = grid.keys(tiles.k, j, 2), grid.keys(tiles.v, j, 2)  # (B, K, k, D)

            def row(i, carry):
                q, do = grid.queries(tiles.q, i, 3), grid.queries(d_rows, i, 3)  # (B, K, G, q, D)

                def attend(masked, carry):
                    d_q, d_k, d_v, d_bias = carry
                    scores, slope = grid.scores(tiles, i, j, grid.queries(q_t, i), k, masked)
                    weights = jnp.exp(scores - grid.queries(lse, i))  # (B, K, k, G, q)
                    d_weights = jnp.einsum(
                        "bhkd,bhdgq->bhkgq", v, grid.queries(d_rows_t, i), preferred_element_type=wide
                    )
                    dropped = weights
                    if request.dropout_rate:
                        kept = grid.kept(tiles, arrays.seeds, i, j)
                        factor = jnp.where(kept, 1 / (1 - request.dropout_rate), 0.0).astype(wide)
                        dropped, d_weights = weights * factor, d_weights * factor
                    d_scores = weights * (d_weights - grid.queries(delta, i))
                    d_product = (d_scores * slope).astype(dtype)
                    d_v += jnp.einsum("bhkgq,bhgqd->bhkd", dropped.astype(dtype), do, preferred_element_type=wide)
                    d_k += jnp.einsum("bhkgq,bhgqd->bhkd", d_product, q, preferred_element_type=wide)
                    d_q += jnp.einsum("bhkd,bhkgq->bhdgq", k, d_product, preferred_element_type=wide)
                    if d_bias is not None:
                        d_bias += _summed(jnp.moveaxis(d_scores, 2, 4), d_bias.shape)
                    return d_q, d_k, d_v, d_bias

                d_q, d_k, d_v, d_bias = carry
                here = None if d_bias is None else grid.window(d_bias, i, j)
                here = grid.queries(d_q, i), d_k, d_v, here
                found, d_k, d_v, here = _by_kind(grid, tiles, i, j, attend, here)
                d_q = lax.dynamic_update_slice_in_dim(d_q, found, i * grid.size[0], 4)
                if d_bias is not None:
                    at = zip((3, 4), (i, j), grid.size, strict=True)
                    at = (jnp.int32(0) if d_bias.shape[axis] == 1 else n * size for axis, n, size in at)
                    d_bias = lax.dynamic_update_slice(d_bias, here, (jnp.int32(0),) * 3 + tuple(at))
                return d_q, d_k, d_v, d_bias

            d_q, d_bias = carry
            zeros = jnp.zeros_like(k, dtype=wide)
            d_q, d_k, d_v, d_bias = lax.fori_loop(*grid.rows(j), row, (d_q, zeros, zeros, d_bias))
            return (d_q, d_bias), (d_k, d_v)

        start = jnp.zeros_like(q_t, dtype=wide), d_bias
        (d_q, d_bias), (d_k, d_v) = lax.scan(column, start, jnp.arange(grid.count[1], dtype=jnp.int32))
        d_k, d_v = (jnp.moveaxis(x, 0, 2) for x in (d_k, d_v))  # (B, K, S' / k, k, D)
        return d_bias, (jnp.moveaxis(d_q, 2, 4), d_k, d_v)

    tree = tiles, _rows(d_out.swapaxes(1, 2).astype(dtype), tiles), lse, delta  # lse, delta: (B, K, 1, G, T')
    start = None if tiles.bias is None else jnp.zeros_like(tiles.bias, dtype=wide)
    d_bias, (d_q, d_k, d_v) = over_heads(step, tree, start, (batch, groups), _together(grid, tiles))
    d_q = d_q.reshape(batch, heads, -1, depth)[:, :, :length].swapaxes(1, 2)
    d_k, d_v = (x.reshape(batch, groups, -1, depth)[:, :, :span].swapaxes(1, 2) for x in (d_k, d_v))
    d_q, d_k, d_v = (x.astype(arrays.query.dtype) for x in (d_q, d_k, d_v))
    if d_bias is not None:
        shape = arrays.bias.shape
        d_bias = d_bias.reshape(*shape[:2], *d_bias.shape[3:])[:, :, : shape[2], : shape[3]].astype(arrays.bias.dtype)
    return d_q, d_k, d_v, d_bias


def tangent(request: Request, arrays: Arrays, out, lse, d_learned: tuple):
    """The tangents of output and log-sum-exp, from those of query, key, value and bias (None where there is none).

    P = exp(S - lse),   dS = scale (dQ K' + Q dK') + dB,   dlse = rowsum(P dS),   dO = P dS V + P dV - dlse O
    """
    grid, tiles = cut(request, arrays, TILE)
    _, d_tiles = cut(request, Arrays(*d_learned, *arrays[4:]), TILE)
    wide, dtype, (batch, length, heads, _) = grid.wide, tiles.q.dtype, arrays.query.shape

    def step(carry, tree):
        tiles, d_tiles, lse = tree
        q_t, d_q_t = (jnp.moveaxis(x, 4, 2) for x in (tiles.q, d_tiles.q))  # (B, K, D, G, T')

        def row(i):
            """One tile of queries against all keys: (B, K, D, G, q) and (B, K, 1, G, q)."""
            q, d_q, row_lse = (grid.queries(x, i) for x in (q_t, d_q_t, lse))

            def column(j, carry):
                k, v, d_k, d_v = (grid.keys(x, j, 2) for x in (tiles.k, tiles.v, d_tiles.k, d_tiles.v))

                def attend(masked, carry):
                    d_out, d_lse = carry
                    scores, slope = grid.scores(tiles, i, j, q, k, masked)
                    weights = jnp.exp(scores - row_lse)  # (B, K, k, G, q)
                    products = (
                        jnp.einsum("bhkd,bhdgq->bhkgq", *pair, preferred_element_type=wide)
                        for pair in ((k, d_q), (d_k, q))
                    )
                    d_scores = sum(products) * slope
                    if d_tiles.bias is not None:
                        d_scores = d_scores + jnp.moveaxis(grid.window(d_tiles.bias, i, j), 4, 2).astype(wide)
                    d_lse += (weights * d_scores).sum(axis=2, keepdims=True)
                    if request.dropout_rate:
                        kept = grid.kept(tiles, arrays.seeds, i, j)
                        weights = jnp.where(kept, weights / (1 - request.dropout_rate), 0.0)
                    for x, y in ((v, weights * d_scores), (d_v, weights)):
                        d_out += jnp.einsum("bhkd,bhkgq->bhdgq", x, y.astype(dtype), preferred_element_type=wide)
                    return d_out, d_lse

                return _by_kind(grid, tiles, i, j, attend, carry)

            nothing = jnp.zeros_like(q, dtype=wide)
            start = nothing, jnp.zeros_like(nothing, shape=row_lse.shape)
            return lax.fori_loop(*grid.columns(i), column, start)

        found = lax.map(row, jnp.arange(grid.count[0], dtype=jnp.int32))  # (T' / q, B, K, D or 1, G, q)
        return carry, jax.tree.map(lambda x: x.transpose(1, 2, 4, 0, 5, 3), found)  # (B, K, G, T' / q, q, D or 1)

    # A row with nothing to attend to has lse -inf, and exp(S - inf) = 0 is what its weights are.
    tree = tiles, d_tiles, _rows(jnp.where(jnp.isfinite(lse), lse, jnp.inf), tiles)[:, :, None]
    _, found = over_heads(step, tree, None, (batch, arrays.key.shape[2]), _together(grid, tiles))
    moved, d_lse = (x.reshape(batch, heads, -1, x.shape[-1])[:, :, :length] for x in found)
    d_out = (moved - d_lse * out.swapaxes(1, 2).astype(wide)).swapaxes(1, 2)
    return d_out.astype(arrays.query.dtype), d_lse[..., 0]


def _rows(x: jax.Array, tiles: Tiling) -> jax.Array:
    """(B, N, T, ...) in whole tiles, (B, K, G, T', ...)."""
    batch, groups, members, length = tiles.q.shape[:4]
    x = x.reshape(batch, groups, members, *x.shape[2:])
    return jnp.pad(x, [(0, 0)] * 3 + [(0, length - x.shape[3])] + [(0, 0)] * (x.ndim - 4))


def _summed(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x, summed over the axes that this shape has 1 on."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1)
    return x.sum(axis=axes, keepdims=True)
