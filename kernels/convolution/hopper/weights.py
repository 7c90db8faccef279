"""The gradient of a kernel: for each of its taps the product of the pixels that it reads, transposed, and of dy."""

import math
from typing import NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.attention.hopper.plan import MEMORY, divide
from kernels.convolution.hopper import boxes, machine
from kernels.convolution.hopper.boxes import Box, Walk
from kernels.convolution.hopper.product import BYTES, CORES, PRODUCTS, WARPGROUPS

CHUNK = 64  # channels of a tile of either operand
STREAM = 18  # bytes that a core's part of the global memory moves in a cycle, about


class Plan(NamedTuple):
    """Sums over pixels. Each warpgroup has 64 channels of a tap, and all have the same features.

    Fields:
      walks, sizes, groups, channels, features, parts: as in `product.Plan`.
      box: of pixels of a step, whole multiples of the 64 that a swizzled operand of wgmma needs.
      tiles: of 64 features.
      pieces: of the pixels, each summed up by a block.
      stages: steps under way.
    """

    walks: tuple[Walk, Walk]
    sizes: Box
    groups: int
    channels: int
    features: int
    parts: int
    box: Box
    tiles: int
    pieces: int
    stages: int

    @property
    def items(self) -> int:
        """Taps, and 64 channels of each."""
        return math.prod(walk.count for walk in self.walks) * self.channels // CHUNK

    @property
    def boxes(self) -> int:
        return math.prod(boxes.count(self.sizes, self.box))

    @property
    def each(self) -> int:
        """Boxes of a piece; the last may have fewer."""
        return -(-self.boxes // self.pieces)

    @property
    def blocks(self) -> int:
        """Of a piece."""
        return self.groups * -(-self.items // WARPGROUPS) * (self.features // CHUNK // self.tiles)


def planned(walks, sizes: Box, groups: int, channels: int, features: int, parts: int) -> Plan:
    """As many pieces as take the least time, as it is estimated: of their steps, and to write and add up their sums."""
    tiles = next(n for n in (4, 3, 2, 1) if features // CHUNK % n == 0)
    box = boxes.fit(sizes, 128 if tiles * parts <= 2 else 64, 64)
    stage = 2 * CHUNK * math.prod(box) * parts * (WARPGROUPS + tiles)  # bytes
    plan = Plan(walks, sizes, groups, channels, features, parts, box, tiles, 1, min(6, MEMORY // stage))
    products = WARPGROUPS * CHUNK * CHUNK * tiles * math.prod(box) * (2 * parts - 1) / PRODUCTS
    step, sums = max(products, stage / BYTES), 4 * plan.blocks * WARPGROUPS * CHUNK * tiles * CHUNK  # cycles, bytes

    def time(pieces):
        rounds = -(-plan.blocks * pieces // CORES)
        return rounds * -(-plan.boxes // pieces) * step + 2 * sums * pieces / (CORES * STREAM)

    plan = plan._replace(pieces=min(range(1, min(plan.boxes, CORES) + 1), key=time))
    return plan._replace(pieces=-(-plan.boxes // plan.each))


def run(plan: Plan, x: list, dy: list) -> jax.Array:
    """dw[g, t, c, k] = sum_npq x[n, p + a_t, q + b_t, c] dy[n, p, q, k], (groups, taps, C, K) float32.

    x: the parts of `boxes.view`; dy: of (N, H', W', groups K). Pieces of the pixels are added up in order.
    """
    rows, lead = math.prod(plan.box), (plan.stages, WARPGROUPS)
    boxed = [machine.boxed(*lead, rows=rows, box=plan.box, channels=CHUNK)] * plan.parts
    across = [machine.boxed(plan.stages, plan.tiles, rows=rows, box=plan.box, channels=CHUNK)] * plan.parts
    scratch = {
        "x": boxed,
        "dy": across,
        "here": plgpu.Barrier(num_arrivals=plan.parts * (WARPGROUPS + plan.tiles), num_barriers=plan.stages),
        "free": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=plan.stages),
    }
    whole = -(-plan.items // WARPGROUPS) * WARPGROUPS
    shape = (plan.pieces, plan.groups, whole, CHUNK, plan.features)

    def body(inputs, output, scratch):
        warpgroup = lax.axis_index("warpgroup")
        piece, rest = divide(lax.axis_index("item"), plan.blocks)
        group, rest = divide(rest, plan.blocks // plan.groups)
        items, column = divide(rest, plan.features // CHUNK // plan.tiles)
        first = piece * np.int32(plan.each)
        at = first, jnp.minimum(np.int32(plan.each), np.int32(plan.boxes) - first), group, items * np.int32(WARPGROUPS)
        column = column * np.int32(plan.tiles * CHUNK)

        @pl.when(warpgroup == WARPGROUPS)
        def _():
            plgpu.set_max_registers(40, action="decrease")
            _produce(plan, inputs, scratch, *at, column)

        @pl.when(warpgroup < WARPGROUPS)
        def _():
            plgpu.set_max_registers(232, action="increase")
            sums = _consume(plan, scratch, warpgroup, at[1])
            for tile, total in enumerate(sums):
                features = pl.ds(column + np.int32(tile * CHUNK), CHUNK)
                output.at[piece, group, at[3] + warpgroup, :, features][...] = total

    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    inputs, name = {"x": x, "dy": dy}, "convolution_weight_gradient"
    found = machine.launch(body, name, plan.pieces * plan.blocks, inputs, out, scratch, WARPGROUPS + 1)
    return found.sum(0)[:, : plan.items].reshape(plan.groups, -1, plan.channels, plan.features)


def _produce(plan, inputs, scratch, first, steps, group, item, column):
    counts = boxes.count(plan.sizes, plan.box)

    def step(number, carry):
        slot = divide(number, plan.stages)[1]
        start = boxes.start(first + number, counts, plan.box)

        @pl.when(number >= plan.stages)
        def _():
            plgpu.barrier_wait(scratch["free"].at[slot])

        here = scratch["here"].at[slot]
        for warpgroup in range(WARPGROUPS):
            own = jnp.minimum(item + np.int32(warpgroup), np.int32(plan.items - 1))
            tap, chunk = divide(own, plan.channels // CHUNK)
            channel = group * np.int32(plan.channels) + chunk * np.int32(CHUNK)
            at = boxes.seen(plan.walks, tap, start, plan.box, channel, plan.groups * plan.channels, CHUNK)
            for source, tiles in zip(inputs["x"], scratch["x"], strict=True):
                plgpu.copy_gmem_to_smem(source.at[at], machine.landing(tiles, (slot, warpgroup), plan.box), here)
        pixels = [pl.ds(n, size) for n, size in zip(start, plan.box, strict=True)]
        for tile in range(plan.tiles):
            at = *pixels, pl.ds(group * np.int32(plan.features) + column + np.int32(tile * CHUNK), CHUNK)
            for source, tiles in zip(inputs["dy"], scratch["dy"], strict=True):
                plgpu.copy_gmem_to_smem(source.at[at], machine.landing(tiles, (slot, tile), plan.box), here)
        return carry

    lax.fori_loop(np.int32(0), steps, step, None)
    for slot in range(plan.stages):  # no barrier is left in the middle of a phase

        @pl.when(steps > slot)
        def _(slot=slot):
            plgpu.barrier_wait(scratch["free"].at[slot])


def _consume(plan, scratch, warpgroup, steps):
    rows = math.prod(plan.box)

    def operands(number):
        slot = divide(number, plan.stages)[1]
        plgpu.barrier_wait(scratch["here"].at[slot])
        left = machine.transposed([machine.matrix(ref, (slot, warpgroup), rows) for ref in scratch["x"]])
        right = [[machine.matrix(ref, (slot, tile), rows) for ref in scratch["dy"]] for tile in range(plan.tiles)]
        return [machine.pairs(left, tile) for tile in right]

    def release(number):
        plgpu.barrier_arrive(scratch["free"].at[divide(number, plan.stages)[1]])

    return machine.accumulate((CHUNK, CHUNK), plan.tiles, steps, operands, release)
