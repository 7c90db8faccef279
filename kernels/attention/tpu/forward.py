"""The forward pass: a row of tiles after the other, each tile of keys added to the output with a softmax that moves.

Milakov and Gimelshein 2018, Online normalizer calculation for softmax; Dao et al. 2022, FlashAttention.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.attention import masks
from kernels.attention.request import Arrays, Request
from kernels.attention.tpu import plan as plans
from kernels.attention.tpu.tile import LOG2E, Tile, by_kind, dot, spread, unit


def forward(request: Request, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T)."""
    plan = plans.lay_out(request, arrays, plans.FORWARD)
    (batch, heads, _, depth), (q, _) = plan.shape, plan.size

    def place(b, n, visit, scalars):
        # An empty tile asks for tile 0, with which the next row begins as a rule.
        kind = plan.kind(scalars, b, n, visit)
        column = jnp.where(kind == masks.EMPTY, 0, scalars["columns"][visit])
        return b, n, scalars["rows"][visit], column

    length = plan.padded[0]
    out, lse = plan.call(
        _kernel,
        "attention_forward",
        grid=(batch, heads, plan.visits),
        place=place,
        out_specs=[
            pl.BlockSpec((None, None, q, depth), lambda b, n, visit, scalars: (b, n, scalars["rows"][visit], 0)),
            pl.BlockSpec((None, None, 1, q), lambda b, n, visit, scalars: (b, n, 0, scalars["rows"][visit])),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, length, depth), plan.inputs["query"].dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        scratch=[(q, plans.LANES), (q, plans.LANES), (q, depth)],
        parallel=2,
        products=2,
    )
    length = plan.limit[0]
    return out[:, :, :length].swapaxes(1, 2).astype(arrays.query.dtype), lse[:, :, 0, :length]


def _kernel(plan, scalars, inputs, out_ref, lse_ref, top_ref, total_ref, sum_ref):
    """One tile of queries q against one of keys, with the row's maximum m, which decays what came before.

        m' = max(m, rowmax S),   c = exp(m - m'),   P = exp(S - m'),   l' = c l + rowsum P,   O' = c O + P V

    m is kept once a lane; l is summed over the lanes at the end alone.
    """
    b, n, visit = (pl.program_id(axis) for axis in range(3))
    i, j = scalars["rows"][visit], scalars["columns"][visit]
    depth, to_base_2, rate = plan.shape[3], unit(plan), plan.request.dropout_rate

    @pl.when((visit == 0) | (scalars["rows"][jnp.maximum(visit - 1, 0)] != i))
    def start():
        top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def attend(masked):
        query = inputs["query"][...]  # (q, D)
        for keys in plans.parts(plan.size[1]):
            tile, width = Tile(plan, scalars, inputs, (b, n, i, j), keys), keys.stop - keys.start
            scores, _ = tile.scores(query, inputs["key"][tile.keys, :])  # (q, k)
            scores = tile.masked(scores) if masked else scores
            top = top_ref[...]  # (q, LANES)
            higher = jnp.maximum(top, scores.max(axis=1, keepdims=True))
            shift = jnp.where(higher == -jnp.inf, 0.0, higher)  # a row with nothing to attend to yet
            weights = jnp.exp2((scores - spread(shift, width)) * to_base_2)
            decay = jnp.exp2((top - shift) * to_base_2)
            parts = (weights[:, at : at + plans.LANES] for at in range(0, width, plans.LANES))
            total_ref[...] = total_ref[...] * decay + sum(parts)
            if rate:
                weights = jnp.where(tile.kept(), weights, 0.0)
            value = inputs["value"][tile.keys, :]  # (k, D)
            sum_ref[...] = sum_ref[...] * spread(decay, depth) + dot(weights.astype(value.dtype), value, (1, 0))
            top_ref[...] = higher

    by_kind(plan, plan.kind(scalars, b, n, visit), attend)

    @pl.when((visit == plan.visits - 1) | (scalars["rows"][jnp.minimum(visit + 1, plan.visits - 1)] != i))
    def finish():
        total = total_ref[...].sum(axis=1, keepdims=True)  # (q, 1)
        some = total > 0
        out_ref[...] = (sum_ref[...] / jnp.where(some, total * (1 - rate), 1.0)).astype(out_ref.dtype)
        lse = top_ref[...] * (to_base_2 / LOG2E) + jnp.log(jnp.where(some, total, 1.0))
        lse_ref[...] = jnp.where(some, lse, -jnp.inf).T[:1]  # (1, q)
