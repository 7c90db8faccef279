"""Tiles that stream through shared memory: who copies them, and when the warpgroups that compute may read them."""

from typing import Any, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import target
from kernels.attention.hopper import machine, schedule
from kernels.attention.hopper.plan import Plan, divide


class Stream(NamedTuple):
    """`stages` tiles of what arrives together; for each stage a barrier for when it is here, and one for when it may be
    overwritten.
    """

    tiles: Any
    here: Any
    free: Any


def stream(plan: Plan, rows: tuple = (), vectors: int = 0) -> Stream:
    """The scratch types of a Stream of matrices' tiles of so many rows (one of `plan.block` if none are named), then of
    vectors, (block,) float32.
    """
    tiles = [
        machine.shared(plan.stages, count, plan.depth, dtype=plan.dtype, swizzle=plan.swizzle)
        for count in rows or (plan.block,)
        for _ in range(plan.parts)
    ]
    tiles += [plgpu.SMEM((plan.stages, plan.block), jnp.float32)] * vectors
    here = plgpu.Barrier(num_arrivals=len(tiles), num_barriers=plan.stages)
    return Stream(tiles, here, plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages))


def kept(plan: Plan) -> list:
    """The scratch types of 64 rows for each warpgroup."""
    return [
        machine.shared(plan.warpgroups, machine.WARPGROUP, plan.depth, dtype=plan.dtype, swizzle=plan.swizzle)
    ] * plan.parts


def feed(plan: Plan, step, copies: list[tuple[Stream, list]]):
    """Copy the tiles of a step from global memory, each stream's as soon as those that they replace are done with."""
    slot = divide(step, plan.stages)[1]
    for to, sources in copies:

        @pl.when(step >= plan.stages)
        def _(to=to):
            plgpu.barrier_wait(to.free.at[slot])

        for source, tile in zip(sources, to.tiles, strict=True):
            plgpu.copy_gmem_to_smem(source, tile.at[slot], to.here.at[slot])
    return step + 1


def feed_keys(plan: Plan, inputs: dict, scratch: dict, batch, head, block):
    """Copy the tiles of keys and values that a block of queries visits."""
    group = divide(head, plan.members)[0]

    def visit(tile, _, step):
        at = batch, pl.ds(tile * np.int32(plan.block), plan.block), group
        copies = [(scratch[name], [ref.at[at] for ref in inputs[name]]) for name in ("key", "value")]
        return feed(plan, step, copies)

    steps = schedule.each(plan, inputs, batch, head, block, visit, np.int32(0))
    drain(plan, steps, [scratch["key"], scratch["value"]])


def drain(plan: Plan, steps, streams: list[Stream]):
    """Wait until all tiles are done with: no barrier is left in the middle of a phase."""
    for slot in range(plan.stages):

        @pl.when(steps > slot)
        def _(slot=slot):
            for to in streams:
                plgpu.barrier_wait(to.free.at[slot])


def tiles(plan: Plan, read: Stream, step) -> list:
    """The tiles of a step, once they are here."""
    slot = divide(step, plan.stages)[1]
    plgpu.barrier_wait(read.here.at[slot])
    return [ref.at[slot] for ref in read.tiles]


def sliced(plan: Plan, tiles: list) -> list:
    """The columns of tiles that are summed up."""
    return [ref.at[:, pl.ds(*plan.slice)] for ref in tiles]


def release(plan: Plan, read: Stream, step):
    """This warpgroup has read the tiles of a step."""
    if target.interpreter() is not None:
        plgpu.commit_smem()  # interpreted, a product reads as a load does, and not as wgmma, in order with TMA's writes
    plgpu.barrier_arrive(read.free.at[divide(step, plan.stages)[1]])


def roles(plan: Plan, produce, consume):
    """The last warpgroup copies with few registers, the others compute with many; consume(number of the warpgroup)."""
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == plan.warpgroups)
    def _():
        if plan.warpgroups > 1:  # else all have 255
            plgpu.set_max_registers(32, action="decrease")
        produce()

    @pl.when(warpgroup < plan.warpgroups)
    def _():
        if plan.warpgroups > 1:
            plgpu.set_max_registers(240, action="increase")
        consume(warpgroup)


def fetch(sources: list, tiles: list, barrier):
    """Copy a warpgroup's own rows, and wait for them; `barrier` expects as many arrivals as there are copies."""
    for source, tile in zip(sources, tiles, strict=True):
        plgpu.copy_gmem_to_smem(source, tile, barrier)
    plgpu.barrier_wait(barrier)


def store(plan: Plan, results: list, buffers: list, targets: list):
    """Write each (64, D') result, part by part: a whole one through the shared memory of what was kept, a slice, which
    TMA can't take from there, as it is.
    """
    results = [machine.split(result, plan.dtype, plan.parts) for result in results]
    through = buffers if plan.slice[1] == plan.depth else targets
    for parts, refs in zip(results, through, strict=True):
        for part, ref in zip(parts, refs, strict=True):
            ref[...] = part
    if through is targets:
        return
    plgpu.commit_smem()
    for buffer, outs in zip(buffers, targets, strict=True):
        for ref, out in zip(buffer, outs, strict=True):
            plgpu.copy_smem_to_gmem(ref, out)
    plgpu.wait_smem_to_gmem(0)
