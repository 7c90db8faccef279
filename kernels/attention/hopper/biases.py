"""The gradient of the bias: each of its tiles adds up the scores' gradients of all that it is broadcast along."""

import math

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.attention import masks
from kernels.attention.hopper import machine, scores, stream
from kernels.attention.hopper.plan import BLOCKS, MEMORY, Plan, divide


def fitting(plan: Plan) -> Plan:
    """The plan with one warpgroup that computes, and tiles of keys and stages that leave room for four streams."""
    row = 2 * plan.depth * plan.parts
    stages, block = next(
        (stages, block)
        for stages in (2, 1)
        for block in BLOCKS
        if block <= 64 and 2 * stages * row * (machine.WARPGROUP + block) <= MEMORY
    )
    return plan._replace(warpgroups=1, stages=stages, block=block)


def run(plan: Plan, shape: tuple, query: list, key: list, value: list, d_out: list, extras: dict) -> jax.Array:
    """sum dS over what a bias of this shape, (B or 1, N or 1, T or 1, S or 1), is broadcast along, float32.

    The sum is over examples, heads and tiles in order, within a block: one block writes each number.
    extras: as for `queries.run`.
    """
    full = tuple(size > 1 for size in shape)
    rows, columns = plan.count
    ranges = (plan.sizes[0], plan.sizes[3], rows, columns)
    own = [n if mine else 1 for n, mine in zip(ranges, full, strict=True)]  # of the tiles of the bias
    along = [1 if mine else n for n, mine in zip(ranges, full, strict=True)]
    sizes = [
        size for size, mine in zip((rows * machine.WARPGROUP, columns * plan.block), full[2:], strict=True) if mine
    ]
    output = jax.ShapeDtypeStruct((*shape[:2], *(sizes or [machine.WARPGROUP])), jnp.float32)
    scratch = {"tiles": stream.stream(plan, rows=(machine.WARPGROUP, machine.WARPGROUP, plan.block, plan.block))}

    def split(number, sizes):
        found = []
        for size in reversed(sizes):
            number, rest = divide(number, size)
            found.append(rest)
        return found[::-1]

    def each(inputs, visit, carry):
        """Fold `visit(example, head, block of rows, tile, carry)` over what this block adds up, in order."""
        mine = split(lax.axis_index("item"), own)

        def step(number, carry):
            at = [a + b for a, b in zip(mine, split(number, along), strict=True)]
            lead = tuple(n if size > 1 else 0 for n, size in zip(at[:2], inputs["kinds"].shape[:2], strict=True))
            empty = inputs["kinds"][*lead, at[2], at[3]] == masks.EMPTY
            return lax.cond(empty, lambda carry: carry, lambda carry: visit(*at, carry), carry)

        return lax.fori_loop(np.int32(0), np.int32(math.prod(along)), step, carry)

    def body(inputs, output, scratch):
        def produce():
            def visit(batch, head, row, column, step):
                queries = batch, pl.ds(row * np.int32(machine.WARPGROUP), machine.WARPGROUP), head
                keys = batch, pl.ds(column * np.int32(plan.block), plan.block), divide(head, plan.members)[0]
                sources = [ref.at[queries] for name in ("query", "d_out") for ref in inputs[name]]
                sources += [ref.at[keys] for name in ("key", "value") for ref in inputs[name]]
                return stream.feed(plan, step, [(scratch["tiles"], sources)])

            stream.drain(plan, each(inputs, visit, np.int32(0)), [scratch["tiles"]])

        def consume(_):
            def visit(batch, head, row, column, carry):
                total, step = carry
                tiles = stream.tiles(plan, scratch["tiles"], step)
                query, d_out, key, value = (tiles[i * plan.parts : (i + 1) * plan.parts] for i in range(4))
                products, d_weights = machine.products(
                    [(query, machine.transposed(key), None), (d_out, machine.transposed(value), None)]
                )  # (64, block)
                stream.release(plan, scratch["tiles"], step)
                at = scores.At(batch, head, row * np.int32(machine.WARPGROUP), column * np.int32(plan.block))

                def beside(name):
                    return machine.load(inputs[name].at[batch, head, pl.ds(at.query, machine.WARPGROUP)], machine.ROWS)

                lse, delta = (lambda name=name: beside(name) for name in ("lse", "delta"))
                _, d_scores = scores.gradients(
                    plan, inputs, at, products, d_weights, lse, delta, masked=True, sloped=False
                )
                return total + d_scores, step + 1

            zeros = machine.full((machine.WARPGROUP, plan.block), 0.0, machine.TILE)
            total, _ = each(inputs, visit, (zeros, np.int32(0)))
            at = split(lax.axis_index("item"), own)
            pieces = [
                pl.ds(n * np.int32(size), size) for n, size in zip(at[2:], (machine.WARPGROUP, plan.block), strict=True)
            ]
            if not full[3]:
                total = total.sum(axis=1)
            elif not full[2]:
                total = total.sum(axis=0)
            pieces = [piece for piece, mine in zip(pieces, full[2:], strict=True) if mine] or [slice(None)]
            output.at[at[0], at[1], *pieces][...] = total

        stream.roles(plan, produce, consume)

    inputs = {"query": query, "key": key, "value": value, "d_out": d_out, **extras}
    found = machine.launch(body, "attention_biases", math.prod(own), inputs, output, scratch, plan.warpgroups + 1)
    if not any(full[2:]):
        return found.sum(axis=-1)[..., None, None]  # 64 rows
    whole = found if all(full[2:]) else jnp.expand_dims(found, 3 if full[2] else 2)
    return whole[:, :, : shape[2], : shape[3]]
