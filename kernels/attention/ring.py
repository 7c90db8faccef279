"""Attention over a sequence that is divided over devices: keys and values go round a ring.

Liu, Zaharia and Abbeel 2023, Ring attention with blockwise transformers for near-infinite context, section 3.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels import target
from kernels.attention import backends, derivatives, xla
from kernels.attention.masks import Band, Mask
from kernels.attention.request import Arrays, Request, ask, wide


class Ring(NamedTuple):
    """What is known when the program is compiled: the axis of the mesh, its size, and the implementation of a block."""

    axis: str
    size: int
    request: Request
    name: str


def ring_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    axis_name: str,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    segment_ids: jax.Array | None = None,
    key_value_segment_ids: jax.Array | None = None,
    logits_soft_cap: float | None = None,
    return_residual: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`attention` within `jax.shard_map`, of positions that are divided in order over the axis `axis_name`.

    Each device holds T queries and S keys of the P T and P S. The keys and values of each visit all devices in P - 1
    steps, and in the gradient their own gradients travel with them. A block where nothing may be attended to, as half
    of them are under a causal mask, costs its journey alone. The lengths count whole sequences; all other arrays are
    the device's own. First and second derivatives work in forward and reverse mode; third derivatives raise.

    Args, returns, raises: as `kernels.attention.attention`; an implementation that gives a log-sum-exp; T = S for
    `is_causal` and a window.

    Example:
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("sequence",))
      >>> divided = jax.sharding.PartitionSpec(None, "sequence")
      >>> call = functools.partial(ring_attention, axis_name="sequence", is_causal=True)
      >>> call = jax.shard_map(call, mesh=mesh, in_specs=divided, out_specs=divided, check_vma=False)
      >>> call(*(jnp.ones((2, 16, 4, 8)),) * 3).shape
      (2, 16, 4, 8)
    """
    mask = Mask(query_seq_lengths, key_value_seq_lengths, segment_ids, key_value_segment_ids)
    bands, scores = (is_causal, local_window_size), (scale, logits_soft_cap)
    request, arrays = ask((query, key, value, None), mask, bands, scores, (0.0, None, None), True)
    if backends.empty(arrays):
        shapes = f"{arrays.query.shape} and {arrays.key.shape}"
        raise ValueError(f"ring attention takes no empty arrays, and query and key are {shapes}")
    size, length, span = lax.axis_size(axis_name), arrays.query.shape[1], arrays.key.shape[1]
    if size > 1 and request.band != Band() and length != span:  # the band of a block would depend on the device
        raise ValueError(f"is_causal and windows need as many keys as queries on a device, not {span} and {length}")
    name = implementation or backends.fastest(request, arrays, among=backends.PLATFORMS)
    if name not in backends.PLATFORMS:
        raise ValueError(f"implementation must be None or one of {', '.join(backends.PLATFORMS)}, not {name!r}")
    if reason := backends.refusal(request, arrays, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    target.record("ring attention", name)
    ring = Ring(axis_name, size, request, name)
    out, lse = derivatives.attention(passes(ring), arrays)
    query = jnp.asarray(query)
    out = out.astype(query.dtype).reshape(query.shape)
    return (out, lse.swapaxes(1, 2).reshape(query.shape[:-1])) if return_residual else out


def _block(ring: Ring, arrays: Arrays, distance: int) -> Request | None:
    """The request for queries that are `distance` devices behind these keys, None if they may not attend to them."""
    length, span = arrays.query.shape[1], arrays.key.shape[1]
    low, high = ring.request.band
    # Query i of this device and key j of that one are at the positions r T + i and (r - distance) S + j.
    low, high = (None if end is None else end + distance * span for end in (low, high))
    if (low is not None and low > span - 1) or (high is not None and high < 1 - length):
        return None
    low = None if low is not None and low <= 1 - length else low
    high = None if high is not None and high >= span - 1 else high
    return ring.request._replace(band=Band(low, high))


def _plan(ring: Ring, arrays: Arrays) -> list[tuple[tuple, range]]:
    """The steps round the ring, in runs of the same work.

    In step n device r has the keys of device r - n, n behind it, or, if they have gone round, P - n before it: the work
    is a pair of requests, for either case.
    """
    work = [tuple(_block(ring, arrays, distance) for distance in (n, n - ring.size)) for n in range(ring.size)]
    work[0] = (work[0][0],) * 2
    # The last step by itself: its keys and values need go nowhere, and a compiler sees that.
    last = {ring.size - 1} if any(work[-1]) else set()
    first = [n for n in range(ring.size) if n == 0 or n in last or work[n] != work[n - 1]]
    return [(work[n], range(n, end)) for n, end in zip(first, [*first[1:], ring.size], strict=True)]


def _go_round(ring: Ring, arrays: Arrays, step: Callable, moving: Any, staying: Any) -> tuple[Any, Any]:
    """`step(requests, n, moving, staying) -> (moving, staying)` for each step, after which all is where it began."""
    for requests, steps in _plan(ring, arrays):
        if not any(requests):
            moving = _pass_on(ring, moving, len(steps))
        elif len(steps) == 1:
            moving, staying = step(requests, steps.start, moving, staying)
        else:  # a loop: a program no longer than for few devices, and memory for one journey
            body = functools.partial(lambda n, state, requests: step(requests, n, *state), requests=requests)
            moving, staying = lax.fori_loop(steps.start, steps.stop, body, (moving, staying))
    return moving, staying


def _pass_on(ring: Ring, tree: Any, places: int = 1) -> Any:
    """What the device so many places before held."""
    there = [(i, (i + places) % ring.size) for i in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis, there), tree)


def _visit(ring: Ring, arrays: Arrays, held: tuple, requests: tuple, n: Any, compute: Callable, nothing: Any) -> Any:
    """`compute(request, arrays)` for the keys, values and segments held in step n, `nothing` where the band says so."""
    rank = lax.axis_index(ring.axis)
    owner = (rank - n) % ring.size
    length, span = arrays.query.shape[1], arrays.key.shape[1]
    rows, columns = arrays.mask.query_lengths, arrays.mask.key_lengths
    rows = None if rows is None else jnp.clip(rows - rank * length, 0, length)
    columns = None if columns is None else jnp.clip(columns - owner * span, 0, span)
    key, value, segments = held
    mask = arrays.mask._replace(query_lengths=rows, key_lengths=columns, key_segments=segments)
    arrays = arrays._replace(key=key, value=value, mask=mask)

    def branch(request):
        return (lambda _: nothing) if request is None else (lambda arrays: compute(request, arrays))

    behind, before = requests
    if behind == before:
        return branch(behind)(arrays)
    return lax.cond(rank >= n, branch(behind), branch(before), arrays)


def _forward(ring: Ring, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T) of this device's queries."""
    query = arrays.query
    (batch, length, heads, _), sums = query.shape, wide(query.dtype)
    nothing = jnp.zeros_like(query), jnp.full_like(query, -jnp.inf, shape=(batch, heads, length), dtype=sums)
    forward = backends.module(ring.name).forward

    def step(requests, n, held, found):
        ahead = _pass_on(ring, held)  # while this device computes
        block, block_lse = _visit(ring, arrays, held, requests, n, lambda *asked: forward(*asked)[:2], nothing)
        out, lse = found
        total = jnp.logaddexp(lse, block_lse)
        weights = (jnp.exp(x - jnp.where(jnp.isfinite(total), total, 0.0)) for x in (lse, block_lse))
        old, new = (x.swapaxes(1, 2)[..., None] for x in weights)  # (B, T, N, 1)
        return ahead, (out * old + block.astype(sums) * new, total)

    held = arrays.key, arrays.value, arrays.mask.key_segments
    _, (out, lse) = _go_round(ring, arrays, step, held, (nothing[0].astype(sums), nothing[1]))
    return out.astype(query.dtype), lse


def _backward(ring, arrays, found, d_out, d_lse):
    """The gradients of query, key, value and bias, which is None."""
    (out, lse), backward, sums = found, backends.module(ring.name).backward, wide(arrays.query.dtype)
    nothing = jax.tree.map(jnp.zeros_like, arrays[:3])

    def gradients(request, arrays):
        # The weights of a block follow from the log-sum-exp of the whole row.
        return backward(request, arrays, out, lse, d_out, d_lse)[:3]

    def step(requests, n, moving, d_query):
        held, (d_key, d_value) = moving
        ahead = _pass_on(ring, held)
        found = _visit(ring, arrays, held, requests, n, gradients, nothing)
        more_query, more_key, more_value = (x.astype(sums) for x in found)
        return (ahead, _pass_on(ring, (d_key + more_key, d_value + more_value))), d_query + more_query

    held = arrays.key, arrays.value, arrays.mask.key_segments
    start = tuple(jnp.zeros_like(x, dtype=sums) for x in arrays[:3])
    (_, (d_key, d_value)), d_query = _go_round(ring, arrays, step, (held, start[1:]), start[0])
    return *(x.astype(arrays.query.dtype) for x in (d_query, d_key, d_value)), None


def _plain(ring, arrays, out, lse, d_out, d_lse):
    return _backward(ring._replace(name="xla"), arrays, (out, lse), d_out, d_lse)


def _tangent(ring, arrays, out, lse, d_learned):
    """The tangents of output and log-sum-exp: those that the blocks contribute, added up."""
    sums, (d_query, *moving, _) = wide(arrays.query.dtype), d_learned
    nothing = jnp.zeros_like(out), jnp.zeros_like(lse)

    def step(requests, n, moving, found):
        held, d_held = moving
        ahead = _pass_on(ring, moving)

        def compute(request, arrays):
            return xla.tangent(request, arrays, out, lse, (d_query, *d_held, None))

        block = _visit(ring, arrays, held, requests, n, compute, nothing)
        return ahead, jax.tree.map(lambda total, x: total + x.astype(sums), found, block)

    moving = (arrays.key, arrays.value, arrays.mask.key_segments), tuple(moving)
    _, (d_out, d_lse) = _go_round(ring, arrays, step, moving, tuple(x.astype(sums) for x in nothing))
    return d_out.astype(out.dtype), d_lse


def _formula(ring, arrays):
    raise NotImplementedError("ring attention has first and second derivatives, and none of a higher order")


def passes(ring: Ring) -> derivatives.Passes:
    """Of a ring: blocks of its implementation, and of `xla` where plain JAX is needed."""
    return derivatives.Passes(ring, _forward, _backward, _tangent, _plain, _formula)
