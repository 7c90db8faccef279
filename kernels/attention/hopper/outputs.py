"""Forward: a block of queries against the keys and values that stream by."""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.attention.hopper import machine, schedule, scores, stream
from kernels.attention.hopper.machine import spread
from kernels.attention.hopper.plan import Plan, item


def run(plan: Plan, query: list, key: list, value: list, extras: dict) -> dict:
    """'out': the output's parts, (B, T', N, D) each; 'lse': log-sum-exp to the base 2, (B, N, T'); T' is whole blocks.

        m = max(m', max_j x_j),   l = l' 2^(m' - m) + sum_j 2^(x_j - m),   o = o' 2^(m' - m) + sum_j 2^(x_j - m) v_j

    query: the parts of (B, T, N, D); key and value: of (B, S, K, D).
    """
    batch, _, _, heads, _ = plan.sizes
    length = plan.count[0] * plan.rows
    out = [jax.ShapeDtypeStruct((batch, length, heads, plan.depth), plan.dtype)] * plan.parts
    outputs = {"out": out, "lse": jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)}
    scratch = {
        "query": stream.kept(plan),
        "here": plgpu.Barrier(num_arrivals=plan.parts, num_barriers=plan.warpgroups),
        "key": stream.stream(plan),
        "value": stream.stream(plan),
        "lse": plgpu.SMEM((plan.warpgroups, machine.WARPGROUP), jnp.float32),
        "turn": plgpu.Barrier(num_arrivals=plan.warpgroups),
    }

    def body(inputs, outputs, scratch):
        at = item(plan, heads)
        stream.roles(
            plan,
            lambda: stream.feed_keys(plan, inputs, scratch, *at),
            lambda warpgroup: _consume(plan, inputs, outputs, scratch, warpgroup, *at),
        )

    inputs = {"query": query, "key": key, "value": value, **extras}
    return machine.launch(
        body, "attention_forward", batch * heads * plan.count[0], inputs, outputs, scratch, plan.warpgroups + 1
    )


def _consume(plan, inputs, outputs, scratch, warpgroup, batch, head, block):
    start = block * np.int32(plan.rows) + warpgroup * np.int32(machine.WARPGROUP)
    rows, rate = pl.ds(start, machine.WARPGROUP), plan.request.dropout_rate

    def own(warpgroup):
        return [ref.at[warpgroup] for ref in scratch["query"]]

    query = own(warpgroup)
    stream.fetch([ref.at[batch, rows, head] for ref in inputs["query"]], query, scratch["here"].at[warpgroup])

    def turn():
        """The warpgroups alternate: while one multiplies, the other takes exponentials."""
        if plan.warpgroups > 1:
            plgpu.barrier_arrive(scratch["turn"])
            plgpu.barrier_wait(scratch["turn"])

    # Of two parts, or with dropout, the compiler would make every wgmma of the kernel wait.
    ahead = plan.parts == 1 and not rate

    def nothing():
        """No tile at all."""
        out = machine.full((machine.WARPGROUP, plan.depth), 0.0, machine.TILE)
        return out, *(machine.full((machine.WARPGROUP,), x, machine.ROWS) for x in (-jnp.inf, 0.0))

    def softmax(products, tile, masked, state):
        """The weights of a tile, not yet normalised, and how the sums so far shrink: (weights, top, total, decay)."""
        _, top, total, _ = state
        at = scores.At(batch, head, start, tile * np.int32(plan.block))
        x, _ = scores.exponents(plan, inputs, at, products, masked)
        higher = jnp.maximum(top, x.max(axis=1) * plan.factor)  # (64,)
        # A row with nothing to attend to yet keeps -inf, and -inf - 0 does as an exponent.
        shift = jnp.where(higher == -jnp.inf, 0.0, higher) if masked is not False or plan.biased else higher
        weights, decay = jnp.exp2(x * plan.factor - spread(shift, plan.shape, 0)), jnp.exp2(top - shift)
        total = total * decay + weights.sum(axis=1)
        if rate:
            weights = jnp.where(scores.kept(plan, inputs, at), weights, 0.0)
        return machine.split(weights, plan.dtype, plan.parts), higher, total, decay

    def opened(tile, masked):
        """The weights of the first tile."""
        key = stream.tiles(plan, scratch["key"], 0)
        products = machine.product(query, machine.transposed(key), meanwhile=turn)
        stream.release(plan, scratch["key"], 0)
        infinite = machine.full((machine.WARPGROUP,), -jnp.inf, machine.ROWS)
        none = machine.full((machine.WARPGROUP,), 0.0, machine.ROWS)
        state = softmax(products, tile, masked, (None, infinite, none, None))
        turn()
        return machine.full((machine.WARPGROUP, plan.depth), 0.0, machine.TILE), state, np.int32(1)

    def visit(tile, masked, carry):
        """The weights of a tile, while those of the tile before meet its values."""
        out, state, step = carry
        query = own(lax.optimization_barrier(warpgroup))  # else descriptors of all its pieces stay in registers
        key = stream.tiles(plan, scratch["key"], step)
        value = stream.tiles(plan, scratch["value"], step - 1)

        def between(products):
            stream.release(plan, scratch["key"], step)
            return softmax(products, tile, masked, state)

        out, state = machine.overlapped(
            query, machine.transposed(key), state[0], value, out, between, state, meanwhile=turn, ahead=ahead
        )
        stream.release(plan, scratch["value"], step - 1)
        turn()
        return out * spread(state[3], out.shape, 0), state, step + 1

    def closed(carry):
        """The last tile's weights meet its values."""
        out, (weights, top, total, _), step = carry
        out = machine.product(weights, stream.tiles(plan, scratch["value"], step - 1), out)  # (64, D)
        stream.release(plan, scratch["value"], step - 1)
        return out, top, total

    pl.when(warpgroup == 1)(turn)
    out, top, total = schedule.pipelined(plan, inputs, batch, head, block, opened, visit, closed, nothing)
    pl.when(warpgroup == 0)(turn)

    some = total > 0.0
    total = jnp.where(some, total, 1.0)
    inverse = jnp.where(some, 1.0 / (total * (1.0 - rate)), 0.0)
    scratch["lse"].at[warpgroup][...] = jnp.where(some, top + jnp.log2(total), -jnp.inf)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(scratch["lse"].at[warpgroup], outputs["lse"].at[batch, head, rows])
    out = out * spread(inverse, out.shape, 0)
    stream.store(plan, [out], [query], [[ref.at[batch, rows, head] for ref in outputs["out"]]])
