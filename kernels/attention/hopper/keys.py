"""The gradients of keys and values: a block of keys against the queries that stream by, of all heads that share it."""

import functools

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import numpy as np
from jax import lax

from kernels.attention.hopper import machine, schedule, scores, stream
from kernels.attention.hopper.machine import transposed
from kernels.attention.hopper.plan import Plan, item


def run(plan: Plan, wanted: tuple, query: list, key: list, value: list, d_out: list, extras: dict) -> dict:
    """The parts of a slice of dK = scale dS' Q and dV = P' dO, (B, S', K, D') each, S' whole blocks.

    The tiles of scores are transposed, (keys, queries): both sums are then products of what is in registers.

    wanted: 'key', 'value' or both; where registers hold the sums for one alone, each has its pass.
    extras: as for `queries.run`.
    """
    batch, _, _, _, groups = plan.sizes
    span = plan.count[0] * plan.rows
    out = [jax.ShapeDtypeStruct((batch, span, groups, plan.slice[1]), plan.dtype)] * plan.parts
    read = ("key", "value") if "key" in wanted else ("key",)
    scratch = {
        **{name: stream.kept(plan) for name in read},
        "here": plgpu.Barrier(num_arrivals=len(read) * plan.parts, num_barriers=plan.warpgroups),
        "queries": stream.stream(plan, rows=(plan.block, plan.block), vectors=2),
    }

    def body(inputs, outputs, scratch):
        at = item(plan, groups)
        stream.roles(
            plan,
            lambda: _produce(plan, inputs, scratch, *at),
            lambda warpgroup: _consume(plan, wanted, read, inputs, outputs, scratch, warpgroup, *at),
        )

    inputs = {"query": query, "key": key, "value": value, "d_out": d_out, **extras}
    return machine.launch(
        body,
        f"attention_{'_'.join(wanted)}s",
        batch * groups * plan.count[0],
        inputs,
        {name: out for name in wanted},
        scratch,
        plan.warpgroups + 1,
    )


def _each(plan, inputs, batch, group, block, visit, carry):
    """Fold `visit(head, tile, masked, carry)` over the query heads of a group and the tiles of each."""

    def member(number, carry):
        head = group * np.int32(plan.members) + number
        return schedule.each(plan, inputs, batch, head, block, lambda *at: visit(head, *at), carry)

    return lax.fori_loop(np.int32(0), np.int32(plan.members), member, carry)


def _produce(plan, inputs, scratch, batch, group, block):
    def visit(head, tile, _, step):
        rows = pl.ds(tile * np.int32(plan.block), plan.block)
        sources = [ref.at[batch, rows, head] for ref in (*inputs["query"], *inputs["d_out"])]
        sources += [inputs[name].at[batch, head, rows] for name in ("lse", "delta")]
        return stream.feed(plan, step, [(scratch["queries"], sources)])

    steps = _each(plan, inputs, batch, group, block, visit, np.int32(0))
    stream.drain(plan, steps, [scratch["queries"]])


def _consume(plan, wanted, read, inputs, outputs, scratch, warpgroup, batch, group, block):
    start = block * np.int32(plan.rows) + warpgroup * np.int32(machine.WARPGROUP)
    rows = pl.ds(start, machine.WARPGROUP)

    def own(warpgroup):
        return {name: [ref.at[warpgroup] for ref in scratch[name]] for name in read}

    mine = own(warpgroup)
    sources = [ref.at[batch, rows, group] for name in read for ref in inputs[name]]
    stream.fetch(sources, [ref for name in read for ref in mine[name]], scratch["here"].at[warpgroup])

    def visit(head, tile, masked, carry):
        sums, step = carry
        *tiles, lse, delta = stream.tiles(plan, scratch["queries"], step)
        query, d_out = tiles[: plan.parts], tiles[plan.parts :]
        mine = own(lax.optimization_barrier(warpgroup))  # else descriptors of all its pieces stay in registers
        asked = [(mine["key"], transposed(query), None)]
        if "key" in wanted:
            asked.append((mine["value"], transposed(d_out), None))
        products = machine.products(asked)  # (64, block), keys by queries
        d_weights = products[1] if "key" in wanted else None
        at = scores.At(batch, head, tile * np.int32(plan.block), start)
        lse, delta = (functools.partial(machine.load, ref, machine.COLUMNS) for ref in (lse, delta))  # (block,)
        weights, d_scores = scores.gradients(plan, inputs, at, products[0], d_weights, lse, delta, masked)
        factors = {"key": (d_scores, query), "value": (weights, d_out)}
        asked = [
            (machine.split(factors[name][0], plan.dtype, plan.parts), stream.sliced(plan, factors[name][1]), total)
            for name, total in zip(wanted, sums, strict=True)
        ]
        sums = machine.products(asked)  # (64, D')
        stream.release(plan, scratch["queries"], step)
        return tuple(sums), step + 1

    zeros = machine.full((machine.WARPGROUP, plan.slice[1]), 0.0, machine.TILE)
    sums, _ = _each(plan, inputs, batch, group, block, visit, ((zeros,) * len(wanted), np.int32(0)))
    scale = {"key": plan.request.scale, "value": 1.0 / (1.0 - plan.request.dropout_rate)}
    results = [total * scale[name] for name, total in zip(wanted, sums, strict=True)]
    targets = [[ref.at[batch, rows, group] for ref in outputs[name]] for name in wanted]
    stream.store(plan, results, [mine[name] for name in read[: len(wanted)]], targets)
