"""The gradient of the queries: a block of queries against the keys and values that stream by."""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import numpy as np
from jax import lax

from kernels.attention.hopper import machine, schedule, scores, stream
from kernels.attention.hopper.plan import Plan, item


def run(plan: Plan, query: list, key: list, value: list, d_out: list, extras: dict) -> list:
    """The parts of a slice of dQ = scale dS K, (B, T', N, D') each, T' whole blocks.

    extras: also 'lse', to the base 2 and inf for a row with nothing to attend to, and 'delta', (B, N, T'') float32.
    """
    batch, _, _, heads, _ = plan.sizes
    length = plan.count[0] * plan.rows
    outputs = [jax.ShapeDtypeStruct((batch, length, heads, plan.slice[1]), plan.dtype)] * plan.parts
    scratch = {
        "query": stream.kept(plan),
        "d_out": stream.kept(plan),
        "here": plgpu.Barrier(num_arrivals=2 * plan.parts, num_barriers=plan.warpgroups),
        "key": stream.stream(plan),
        "value": stream.stream(plan),
    }

    def body(inputs, outputs, scratch):
        at = item(plan, heads)
        stream.roles(
            plan,
            lambda: stream.feed_keys(plan, inputs, scratch, *at),
            lambda warpgroup: _consume(plan, inputs, outputs, scratch, warpgroup, *at),
        )

    inputs = {"query": query, "key": key, "value": value, "d_out": d_out, **extras}
    return machine.launch(
        body, "attention_queries", batch * heads * plan.count[0], inputs, outputs, scratch, plan.warpgroups + 1
    )


def _consume(plan, inputs, outputs, scratch, warpgroup, batch, head, block):
    start = block * np.int32(plan.rows) + warpgroup * np.int32(machine.WARPGROUP)
    rows = pl.ds(start, machine.WARPGROUP)

    def own(warpgroup):
        return [[ref.at[warpgroup] for ref in scratch[name]] for name in ("query", "d_out")]

    query, d_out = own(warpgroup)
    sources = [ref.at[batch, rows, head] for ref in (*inputs["query"], *inputs["d_out"])]
    stream.fetch(sources, query + d_out, scratch["here"].at[warpgroup])
    lse, delta = (machine.load(inputs[name].at[batch, head, rows], machine.ROWS) for name in ("lse", "delta"))  # (64,)

    def visit(tile, masked, carry):
        d_query, step = carry
        key, value = (stream.tiles(plan, scratch[name], step) for name in ("key", "value"))
        query, d_out = own(lax.optimization_barrier(warpgroup))  # else descriptors of all pieces stay in registers
        products, d_weights = machine.products(
            [(query, machine.transposed(key), None), (d_out, machine.transposed(value), None)]
        )  # (64, block)
        stream.release(plan, scratch["value"], step)
        at = scores.At(batch, head, start, tile * np.int32(plan.block))
        _, d_scores = scores.gradients(plan, inputs, at, products, d_weights, lambda: lse, lambda: delta, masked)
        d_query = machine.product(
            machine.split(d_scores, plan.dtype, plan.parts), stream.sliced(plan, key), d_query
        )  # (64, D')
        stream.release(plan, scratch["key"], step)
        return d_query, step + 1

    carry = machine.full((machine.WARPGROUP, plan.slice[1]), 0.0, machine.TILE), np.int32(0)
    d_query, _ = schedule.each(plan, inputs, batch, head, block, visit, carry)
    target = [ref.at[batch, rows, head] for ref in outputs]
    stream.store(plan, [d_query * plan.request.scale], [query], [target])
