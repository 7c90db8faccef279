"""The gradients, one pass for those of the queries, one for keys and values, and one for a bias.

    P = exp(S - lse),   dS = P (dO V' - delta),   delta = rowsum(dO O) - dlse
    dQ = dS K,   dV = P' dO,   dK = dS' Q,   dbias = dS

Each pass adds up in VMEM what its output is the sum of, in an order that is always the same. Dao et al. 2022,
FlashAttention, appendix B.4.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.attention import masks
from kernels.attention.request import Arrays, Request
from kernels.attention.tpu import plan as plans
from kernels.attention.tpu.tile import LOG2E, Tile, by_kind, dot, lanes, spread, unit


def backward(request: Request, arrays: Arrays, out, lse, d_out, d_lse):
    """The gradients of query, key, value and bias (None where there is none), from those of output and log-sum-exp."""
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2) - d_lse  # (B, N, T)
    if arrays.mask.query_lengths is not None:  # what comes from beyond them is no number to rely on
        delta = jnp.where(jnp.isfinite(lse), delta, 0.0)
    more = {"d_out": d_out, "lse": lse * LOG2E, "delta": delta}
    d_query = _of_query(request, arrays, more)
    d_key, d_value = _of_key_and_value(request, arrays, more)
    return d_query, d_key, d_value, None if arrays.bias is None else _of_bias(request, arrays, more)


def _of_query(request, arrays, more):
    plan = plans.lay_out(request, arrays, plans.BACKWARD, **more)
    (batch, heads, _, depth), (q, _) = plan.shape, plan.size

    def place(b, n, visit, scalars):
        empty = plan.kind(scalars, b, n, visit) == masks.EMPTY
        return b, n, scalars["rows"][visit], jnp.where(empty, 0, scalars["columns"][visit])

    found = plan.call(
        _query_kernel,
        "attention_d_query",
        grid=(batch, heads, plan.visits),
        place=place,
        out_specs=pl.BlockSpec((None, None, q, depth), lambda b, n, visit, scalars: (b, n, scalars["rows"][visit], 0)),
        out_shape=jax.ShapeDtypeStruct((batch, heads, plan.padded[0], depth), plan.inputs["query"].dtype),
        scratch=[(q, depth), (q, plans.LANES), (q, plans.LANES)],
        parallel=2,
        products=3,
    )
    return found[:, :, : plan.limit[0]].swapaxes(1, 2).astype(arrays.query.dtype)


def _query_kernel(plan, scalars, inputs, d_query_ref, sum_ref, lse_ref, delta_ref):
    """dQ of a tile of queries, a tile of keys at a time; scores are (q, k)."""
    b, n, visit = (pl.program_id(axis) for axis in range(3))
    i, j = scalars["rows"][visit], scalars["columns"][visit]

    @pl.when((visit == 0) | (scalars["rows"][jnp.maximum(visit - 1, 0)] != i))
    def start():
        sum_ref[...] = jnp.zeros_like(sum_ref)
        lse_ref[...], delta_ref[...] = lanes(inputs["lse"][...]), lanes(inputs["delta"][...])

    def attend(masked):
        tile = Tile(plan, scalars, inputs, (b, n, i, j), slice(0, plan.size[1]))
        lse, delta = (spread(ref[...], plan.size[1]) for ref in (lse_ref, delta_ref))  # (q, k)
        _, d_scores, slope = _of_scores(tile, masked, lse, delta)
        d_scores = d_scores if slope is None else d_scores * slope
        key = inputs["key"][...]  # (k, D)
        sum_ref[...] += dot(d_scores.astype(key.dtype), key, (1, 0))

    by_kind(plan, plan.kind(scalars, b, n, visit), attend)

    @pl.when((visit == plan.visits - 1) | (scalars["rows"][jnp.minimum(visit + 1, plan.visits - 1)] != i))
    def finish():
        d_query_ref[...] = (sum_ref[...] * plan.request.scale).astype(d_query_ref.dtype)


def _of_key_and_value(request, arrays, more):
    plan = plans.lay_out(request, arrays, plans.BACKWARD, turned=True, **more)
    (batch, heads, groups, depth), (_, k) = plan.shape, plan.size
    members = heads // groups

    def place(b, group, visit, member, scalars):
        empty = plan.kind(scalars, b, group * members + member, visit) == masks.EMPTY
        n = group * members + jnp.where(empty, 0, member)
        return b, n, jnp.where(empty, 0, scalars["rows"][visit]), scalars["columns"][visit]

    shape = jax.ShapeDtypeStruct((batch, groups, plan.padded[1], depth), plan.inputs["key"].dtype)
    block = pl.BlockSpec(
        (None, None, k, depth), lambda b, group, visit, member, scalars: (b, group, scalars["columns"][visit], 0)
    )
    found = plan.call(
        _key_kernel,
        "attention_d_key",
        grid=(batch, groups, plan.visits, members),
        place=place,
        out_specs=[block, block],
        out_shape=[shape, shape],
        scratch=[(k, depth), (k, depth)],
        parallel=2,
        products=4,
    )
    return tuple(x[:, :, : plan.limit[1]].swapaxes(1, 2).astype(arrays.key.dtype) for x in found)


def _key_kernel(plan, scalars, inputs, d_key_ref, d_value_ref, key_sum_ref, value_sum_ref):
    """dK and dV of a tile of keys, a tile of queries of one head of the group at a time; scores are (k, q)."""
    b, group, visit, member = (pl.program_id(axis) for axis in range(4))
    i, j = scalars["rows"][visit], scalars["columns"][visit]
    members, rate = plan.shape[1] // plan.shape[2], plan.request.dropout_rate
    n = group * members + member

    @pl.when((member == 0) & ((visit == 0) | (scalars["columns"][jnp.maximum(visit - 1, 0)] != j)))
    def start():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    def attend(masked):
        tile = Tile(plan, scalars, inputs, (b, n, i, j), slice(0, plan.size[1]))
        weights, d_scores, slope = _of_scores(tile, masked, inputs["lse"][...], inputs["delta"][...])  # of (1, q)
        d_scores = d_scores if slope is None else d_scores * slope
        query, d_out = inputs["query"][...], inputs["d_out"][...]  # (q, D)
        value_sum_ref[...] += dot(weights.astype(d_out.dtype), d_out, (1, 0))
        key_sum_ref[...] += dot(d_scores.astype(query.dtype), query, (1, 0))

    by_kind(plan, plan.kind(scalars, b, n, visit), attend)
    after = scalars["columns"][jnp.minimum(visit + 1, plan.visits - 1)]

    @pl.when((member == members - 1) & ((visit == plan.visits - 1) | (after != j)))
    def finish():
        d_key_ref[...] = (key_sum_ref[...] * plan.request.scale).astype(d_key_ref.dtype)
        d_value_ref[...] = (value_sum_ref[...] * (1 / (1 - rate))).astype(d_value_ref.dtype)


def _of_bias(request, arrays, more):
    """dbias, the axes of the grid in such an order that those along which the bias is broadcast come last."""
    plan = plans.lay_out(request, arrays, plans.BACKWARD, whole=True, **more)
    bias = arrays.bias
    grid = (*plan.shape[:2], *(n // size for n, size in zip(plan.padded, plan.size, strict=True)))
    order = sorted(range(4), key=lambda axis: bias.shape[axis] == 1)  # (B, N, T / q, S / k)
    kept = sum(n > 1 for n in bias.shape)
    block = tuple(size if n > 1 else 1 for n, size in zip(bias.shape[2:], plan.size, strict=True))

    def place(*ids):
        b, n, i, j = _in_order(order, ids[:4])
        empty = plan.kind(ids[4], b, n, i * grid[3] + j) == masks.EMPTY
        return b, n, jnp.where(empty, 0, i), jnp.where(empty, 0, j)

    def out_place(*ids):
        at = _in_order(order, ids[:4])
        return tuple(x if n > 1 else 0 for x, n in zip(at, bias.shape, strict=True))

    shape = tuple(n if axis < 2 or n == 1 else plan.padded[axis - 2] for axis, n in enumerate(bias.shape))
    found = plan.call(
        lambda *refs: _bias_kernel(order, kept, *refs),
        "attention_d_bias",
        grid=tuple(grid[axis] for axis in order),
        place=place,
        out_specs=pl.BlockSpec((None, None, *block), out_place),
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32 if 1 in block else plan.inputs["bias"].dtype),
        scratch=[block],
        parallel=kept,
        products=2,
    )
    return found[:, :, : bias.shape[2], : bias.shape[3]].astype(bias.dtype)


def _in_order(order, ids):
    """(b, n, i, j) of program ids whose axes are in this order."""
    return tuple(ids[order.index(axis)] for axis in range(4))


def _bias_kernel(order, kept, plan, scalars, inputs, d_bias_ref, sum_ref):
    """One tile's part of dbias, summed over the axes along which the bias is broadcast."""
    b, n, i, j = _in_order(order, [pl.program_id(axis) for axis in range(4)])
    inner = [(pl.program_id(axis), pl.num_programs(axis) - 1) for axis in range(kept, 4)]
    across = tuple(axis for axis in (0, 1) if sum_ref.shape[axis] == 1)

    def all_of(conditions):
        whole = jnp.bool_(True)
        for condition in conditions:
            whole = whole & condition
        return whole

    @pl.when(all_of(at == 0 for at, _ in inner))
    def start():
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def attend(masked):
        tile = Tile(plan, scalars, inputs, (b, n, i, j), slice(0, plan.size[1]))
        lse, delta = (spread(lanes(inputs[name][...]), plan.size[1]) for name in ("lse", "delta"))  # (q, k)
        _, d_scores, _ = _of_scores(tile, masked, lse, delta)
        for axis in across:
            d_scores = d_scores.sum(axis=axis, keepdims=True)
        sum_ref[...] += d_scores

    by_kind(plan, plan.kind(scalars, b, n, i * pl.num_programs(order.index(3)) + j), attend)

    @pl.when(all_of(at == end for at, end in inner))
    def finish():
        d_bias_ref[...] = sum_ref[...].astype(d_bias_ref.dtype)


def _of_scores(tile, masked, lse, delta):
    """The weights after dropout but for its factor, the gradient of the logits, and the slope of a soft cap or None."""
    plan, rate = tile.plan, tile.plan.request.dropout_rate
    value, d_out = tile.inputs["value"][...], tile.inputs["d_out"][...]  # (k, D), (q, D)
    scores, slope = tile.scores(tile.inputs["query"][...], tile.inputs["key"][...])
    scores = tile.masked(scores) if masked else scores
    weights = jnp.exp2(scores * unit(plan) - lse)
    d_weights = dot(value, d_out, (1, 1)) if plan.turned else dot(d_out, value, (1, 1))
    dropped = weights
    if rate:
        kept = tile.kept()
        dropped = jnp.where(kept, weights, 0.0)
        d_weights = jnp.where(kept, d_weights * (1 / (1 - rate)), 0.0)
    return dropped, weights * (d_weights - delta), slope
