"""The scores of a tile, and all that is done to them: soft cap, bias, mask, dropout."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.attention import dropout, masks
from kernels.attention.hopper import machine
from kernels.attention.hopper.plan import LOG2E, Plan
from kernels.attention.request import Arrays


class At(NamedTuple):
    """Where a tile of scores lies: example, head, its first query and its first key."""

    batch: Any
    head: Any
    query: Any
    key: Any


def exponents(plan: Plan, refs: dict, at: At, scores, masked):
    """x, such that exp2(x f) with f = `plan.factor` are the weights before they are normalised, and its derivative by
    scale q k, divided by log2(e): None for 1. masked: whether the tile is to be, which may be traced.
    """
    request, slope = plan.request, None
    if request.soft_cap is not None:
        bent = _tanh(scores * (request.scale / request.soft_cap), plan)
        scores, slope = bent * (request.soft_cap * LOG2E), 1.0 - bent * bent
    elif not plan.linear:
        scores = scores * (request.scale * LOG2E)
    if "bias" in refs:
        scores = scores + _window(plan, refs["bias"], at).astype(jnp.float32) * LOG2E

    def hidden(scores):
        allow = allowed(plan, refs, at)
        return scores if allow is None else jnp.where(allow, scores, -jnp.inf)

    if not isinstance(masked, bool):
        scores = lax.cond(masked, hidden, lambda scores: scores, scores)
    elif masked:
        scores = hidden(scores)
    return scores, slope


def gradients(plan: Plan, refs: dict, at: At, scores, d_weights, lse, delta, masked: bool, sloped=True):
    """The weights P, those dropped 0, and the derivative dS by scale q k of a tile, None without that of P.

        P = 2^(x - lse),   dS = P (dP - delta) slope

    d_weights: dO V', or None; lse, delta: functions to load one number a query when it is needed; sloped: whether the
    slope of the soft cap belongs to it.
    """
    rate, axis = plan.request.dropout_rate, int(plan.flipped)
    x, slope = exponents(plan, refs, at, scores, masked)
    weights = jnp.exp2(x * plan.factor - machine.spread(lse(), plan.shape, axis))
    keep = kept(plan, refs, at) if rate else None
    dropped = jnp.where(keep, weights, 0.0) if rate else weights
    if d_weights is None:
        return dropped, None
    d_weights = jnp.where(keep, d_weights * (1.0 / (1.0 - rate)), 0.0) if rate else d_weights
    d_scores = weights * (d_weights - machine.spread(delta(), plan.shape, axis))
    return dropped, d_scores if slope is None or not sloped else d_scores * slope


def _tanh(x, plan):
    """The GPU's tanh is off by 2^-11: enough for 16 bits. For float32, 1 - 2 / (exp(2 x) + 1)."""
    return jnp.tanh(x) if plan.parts == 1 else 1.0 - 2.0 / (jnp.exp2(x * (2 * LOG2E)) + 1.0)


def allowed(plan: Plan, refs: dict, at: At):
    """Which scores of a tile count."""
    queries, keys = (machine.spread(x, plan.shape, _along(plan, axis)) for axis, x in enumerate(_numbers(plan, at)))
    lengths = [refs[name][at.batch] if name in refs else None for name in ("query_lengths", "key_lengths")]
    segments = [None, None]
    if "query_segments" in refs:
        starts = (at.query, at.key)
        segments = [
            _vector(plan, refs[name].at[at.batch, _piece(plan, axis, starts[axis])], axis)
            for axis, name in enumerate(("query_segments", "key_segments"))
        ]
    dense = _window(plan, refs["dense"], at) != 0 if "dense" in refs else None
    # Queries beyond T go nowhere, and keys beyond S, where they are the rows, neither.
    ends = (None, plan.sizes[2] if plan.sizes[2] % plan.block and not plan.flipped else None)
    return masks.rules(plan.request.band, queries, keys, ends, masks.Mask(*lengths, *segments, dense))


def kept(plan: Plan, refs: dict, at: At):
    """Which weights of a tile dropout keeps."""
    number = at.batch * np.int32(plan.sizes[3]) + at.head
    number = refs["heads"][at.batch, at.head] if "heads" in refs else number
    seeds, (queries, keys) = (refs["seeds"][0], refs["seeds"][1]), _numbers(plan, at)
    words = dropout.of_queries(seeds, number, queries), dropout.of_keys(seeds, keys)
    words = (machine.spread(x, plan.shape, _along(plan, axis)) for axis, x in enumerate(words))
    return dropout.kept(*words, plan.request.dropout_rate)


def _along(plan, axis):
    """The axis of a tile along which queries (0) or keys (1) lie."""
    return axis ^ int(plan.flipped)


def _numbers(plan, at):
    """The queries' and the keys' numbers, a vector each."""
    return [machine.numbers(plan.shape, _along(plan, axis), start) for axis, start in enumerate(at[2:])]


def _piece(plan, axis, start):
    """A tile's queries (axis 0) or keys (axis 1)."""
    return machine.pl.ds(start, plan.shape[_along(plan, axis)])


def _vector(plan, ref, axis):
    """One number a query (axis 0) or key (axis 1), spread over the tile."""
    along = _along(plan, axis)
    vector = machine.load(ref, machine.COLUMNS if along else machine.ROWS)
    return machine.spread(vector, plan.shape, along)


def _window(plan, ref, at):
    """The tile of (B or 1, N or 1, T or 1, S or 1), T and S swapped if flipped; a number where both are 1."""
    lead = tuple(n if size > 1 else 0 for n, size in zip(at[:2], ref.shape[:2], strict=True))
    whole = [size > 1 for size in (ref.shape[:1:-1] if plan.flipped else ref.shape[2:])]
    pieces = [_piece(plan, axis, start) if whole[axis] else 0 for axis, start in enumerate(at[2:])]
    ref = ref.at[*lead, *(pieces[::-1] if plan.flipped else pieces)]
    if all(whole):
        return machine.load(ref, machine.TILE)
    return _vector(plan, ref, whole.index(True)) if any(whole) else ref[...]


def gather(plan: Plan, arrays: Arrays) -> dict[str, jax.Array]:
    """What the scores depend on besides queries and keys, padded to whole tiles and swapped if flipped."""
    bias, mask = arrays.bias, arrays.mask
    (rows, columns), counts = (plan.rows, plan.block), plan.count
    rows, columns = rows * counts[0], columns * counts[1]
    queries, keys = (columns, rows) if plan.flipped else (rows, columns)

    def padded(x, axis, to):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, 0 if x.shape[axis] == 1 and x.ndim == 4 else to - x.shape[axis])
        return jnp.pad(x, widths)

    def tiles(x):
        x = padded(padded(x, 2, queries), 3, keys)
        return x.swapaxes(2, 3) if plan.flipped else x

    found = {name: x for name, x in mask._asdict().items() if x is not None}
    if "query_segments" in found:
        found["query_segments"] = padded(mask.query_segments, 1, queries)
        found["key_segments"] = padded(mask.key_segments, 1, keys)
    if "dense" in found:
        found["dense"] = tiles(mask.dense.astype(jnp.int8))
    if bias is not None:
        found["bias"] = tiles(bias.astype(jnp.float32) if bias.dtype == jnp.float64 else bias)
    if arrays.seeds is not None:
        found["seeds"] = arrays.seeds
    if arrays.seeds is not None and arrays.heads is not None:
        found["heads"] = arrays.heads
    return found
