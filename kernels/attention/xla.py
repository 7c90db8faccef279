"""Attention a tile of queries and keys at a time, in plain JAX: memory linear in the lengths.

Forward: Rabe and Staats 2021, Self-attention does not need O(n^2) memory; the gradient from the log-sum-exp is that of
Dao et al. 2022, FlashAttention, section 3.1 and appendix B.4.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels.attention import masks
from kernels.attention.request import Arrays, Request
from kernels.attention.tiling import cut

TILE = (256, 512)  # queries and keys


def refuses(request: Request, arrays: Arrays) -> str | None:
    """It does everything."""
    return None


def forward(request: Request, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T)."""
    tiles = cut(request, arrays, TILE)
    wide = tiles.wide

    def row(i):
        """One tile of queries against all keys: (B, K, G, q, D) and (B, K, G, q, 1)."""
        q = tiles.queries(tiles.q, i)

        def attend(j, carry):
            out, top, total = carry
            scores, _ = tiles.scores(i, j, q, tiles.keys(tiles.k, j))  # (B, K, G, q, k)
            higher = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            shift = jnp.where(jnp.isfinite(higher), higher, 0.0)  # a row with nothing to attend to yet
            weights, decay = jnp.exp(scores - shift), jnp.exp(top - shift)
            total = total * decay + weights.sum(axis=-1, keepdims=True)
            if request.dropout_rate:
                weights = jnp.where(tiles.kept(i, j), weights / (1 - request.dropout_rate), 0.0)
            v = tiles.keys(tiles.v, j)
            update = jnp.einsum("bhgqk,bhkd->bhgqd", weights.astype(v.dtype), v, preferred_element_type=wide)
            return out * decay + update, higher, total

        def column(j, carry):
            return lax.cond(
                tiles.kinds[i, j] == masks.EMPTY, lambda carry: carry, lambda carry: attend(j, carry), carry
            )

        one = (*q.shape[:-1], 1)
        start = jnp.zeros(q.shape, wide), jnp.full(one, -jnp.inf, wide), jnp.zeros(one, wide)
        out, top, total = lax.fori_loop(*tiles.columns(i), column, start)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        return (out / total).astype(arrays.query.dtype), jnp.where(some, top + jnp.log(total), -jnp.inf)

    out, lse = lax.map(row, jnp.arange(tiles.count[0], dtype=jnp.int32))  # (T' / q, B, K, G, q, D or 1)
    batch, length, heads = arrays.query.shape[:3]
    out, lse = (jnp.moveaxis(x, 0, 3).reshape(batch, heads, -1, x.shape[-1])[:, :, :length] for x in (out, lse))
    return out.swapaxes(1, 2), lse[..., 0]


def backward(request: Request, arrays: Arrays, out, lse, d_out, d_lse):
    """The gradients of query, key, value and bias (None where there is none), from those of output and log-sum-exp.

        P = exp(S - lse),   dV = P' dO,   dS = P (dO V' - rowsum(dO O) + dlse),   dQ = dS K,   dK = dS' Q

    One pass over the tiles, a tile of keys at a time; the gradient of the queries adds up in place. No sum depends on
    the order in which threads come to it.
    """
    tiles = cut(request, arrays, TILE)
    wide, (batch, length, heads, depth) = tiles.wide, arrays.query.shape
    span = arrays.key.shape[1]

    def rows(x):
        """(B, N, T, ...) in whole tiles, (B, K, G, T', ...)."""
        x = x.reshape(batch, *tiles.q.shape[1:3], *x.shape[2:])
        return jnp.pad(x, [(0, 0)] * 3 + [(0, tiles.q.shape[3] - length)] + [(0, 0)] * (x.ndim - 4))

    d_rows = rows(d_out.swapaxes(1, 2))
    delta = (d_out.astype(wide) * out.astype(wide)).sum(axis=-1).swapaxes(1, 2) - d_lse  # (B, N, T)
    # A row with nothing to attend to has lse -inf, and exp(S - inf) = 0 is what its weights are.
    lse, delta = (rows(x)[..., None] for x in (jnp.where(jnp.isfinite(lse), lse, jnp.inf), delta))

    def column(carry, j):
        k, v = tiles.keys(tiles.k, j), tiles.keys(tiles.v, j)

        def attend(i, carry):
            d_q, d_k, d_v, d_bias = carry
            q, do = tiles.queries(tiles.q, i), tiles.queries(d_rows, i)
            scores, slope = tiles.scores(i, j, q, k)
            weights = jnp.exp(scores - tiles.queries(lse, i))  # (B, K, G, q, k)
            d_weights = jnp.einsum("bhgqd,bhkd->bhgqk", do, v, preferred_element_type=wide)
            dropped = weights
            if request.dropout_rate:
                factor = jnp.where(tiles.kept(i, j), 1 / (1 - request.dropout_rate), 0.0).astype(wide)
                dropped, d_weights = weights * factor, d_weights * factor
            d_v = d_v + jnp.einsum("bhgqk,bhgqd->bhkd", dropped.astype(do.dtype), do, preferred_element_type=wide)
            d_scores = weights * (d_weights - tiles.queries(delta, i))
            if d_bias is not None:
                d_bias = add(d_bias, d_scores, i, j)
            d_product = (d_scores * slope).astype(q.dtype)
            d_k = d_k + jnp.einsum("bhgqk,bhgqd->bhkd", d_product, q, preferred_element_type=wide)
            more = jnp.einsum("bhgqk,bhkd->bhgqd", d_product, k, preferred_element_type=wide)
            d_q = lax.dynamic_update_slice_in_dim(d_q, tiles.queries(d_q, i) + more, i * tiles.size[0], 3)
            return d_q, d_k, d_v, d_bias

        def row(i, carry):
            return lax.cond(
                tiles.kinds[i, j] == masks.EMPTY, lambda carry: carry, lambda carry: attend(i, carry), carry
            )

        d_q, d_bias = carry
        zeros = jnp.zeros(k.shape, wide)
        d_q, d_k, d_v, d_bias = lax.fori_loop(*tiles.rows(j), row, (d_q, zeros, zeros, d_bias))
        return (d_q, d_bias), (d_k.astype(k.dtype), d_v.astype(v.dtype))

    def add(total, x, i, j):
        """Add a tile to that of the bias, summed over what the bias is broadcast along."""
        axes = tuple(axis for axis in range(5) if total.shape[axis] == 1 and x.shape[axis] != 1)
        here = tiles.window(total, i, j) + x.sum(axis=axes, keepdims=True)
        nothing = jnp.int32(0)
        at = (
            nothing if total.shape[axis] == 1 else n * size
            for axis, n, size in zip((3, 4), (i, j), tiles.size, strict=True)
        )
        return lax.dynamic_update_slice(total, here, (nothing, nothing, nothing, *at))

    start = jnp.zeros(tiles.q.shape, wide), None if tiles.bias is None else jnp.zeros(tiles.bias.shape, wide)
    (d_q, d_bias), (d_k, d_v) = lax.scan(column, start, jnp.arange(tiles.count[1], dtype=jnp.int32))
    d_q = d_q.reshape(batch, heads, -1, depth)[:, :, :length].swapaxes(1, 2).astype(arrays.query.dtype)
    d_k, d_v = (
        jnp.moveaxis(x, 0, 2).reshape(batch, x.shape[2], -1, depth)[:, :, :span].swapaxes(1, 2) for x in (d_k, d_v)
    )
    if d_bias is not None:
        shape = arrays.bias.shape
        whole = d_bias.reshape(*shape[:2], *d_bias.shape[3:])
        d_bias = whole[:, :, : shape[2], : shape[3]].astype(arrays.bias.dtype)
    return d_q, d_k, d_v, d_bias
