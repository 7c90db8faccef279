"""Convolution as a matrix product that never writes its left side down: pixels by (taps, channels) by features."""

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
from kernels.convolution.hopper.activations import ACTIVATIONS
from kernels.convolution.hopper.boxes import Box, Walk

WARPGROUPS = 2  # that compute
CORES = 132
PRODUCTS, BYTES = 2048, 40  # that a core multiplies in a cycle, and about what L2 hands to it
TILES = ((128, 128), (128, 64), (64, 128), (64, 64))  # pixels of a warpgroup, and features


class Plan(NamedTuple):
    """A product. Each warpgroup has its box of pixels, and all have the same features.

    Fields:
      walks: over rows and columns; sizes: N, H' and W' of the output.
      groups: of channels; channels and features: of a group, padded to whole tiles.
      chunk: channels of a step; parts: how many bfloat16 numbers sum up to one.
      box: of a warpgroup's pixels, `rows` at most; columns: features of a tile.
      stages: steps under way.
      activation: of the epilogue.
    """

    walks: tuple[Walk, Walk]
    sizes: Box
    groups: int
    channels: int
    features: int
    chunk: int
    parts: int
    box: Box
    rows: int
    columns: int
    stages: int
    activation: str | None

    @property
    def chunks(self) -> int:
        return self.channels // self.chunk

    @property
    def steps(self) -> int:
        return math.prod(walk.count for walk in self.walks) * self.chunks

    @property
    def grid(self) -> int:
        pairs = -(-math.prod(boxes.count(self.sizes, self.box)) // WARPGROUPS)
        return pairs * self.groups * (self.features // self.columns)


def planned(walks, sizes: Box, groups: int, channels: int, features: int, parts: int, activation) -> Plan:
    """The tiles that take the least time, as it is estimated: a block for each core at a time, each step of which takes
    as long as its products or as its copies, whichever is longer.
    """
    chunk, found = min(channels, 64), []
    for rows, columns in TILES:
        if features % columns or columns // chunk > 2:
            continue
        stage = 2 * chunk * parts * (WARPGROUPS * rows + columns)  # bytes
        tiles = boxes.fit(sizes, rows, 64 // chunk), rows, columns, min(6, MEMORY // stage)
        plan = Plan(walks, sizes, groups, channels, features, chunk, parts, *tiles, activation)
        products = WARPGROUPS * rows * columns * chunk * (2 * parts - 1) / PRODUCTS
        found.append((-(-plan.grid // CORES) * max(products, stage / BYTES), -rows * columns, plan))
    return min(found)[-1]


def run(name: str, plan: Plan, x: list, w: list, scale, offset, residual: list | None, channels: int) -> list:
    """The parts of y, (N, H', W', K'), for sums s of products and an activation f,

        s[n, p, q, k] = sum_tc x[n, s p + a_t, s q + b_t, c] w[t, c, k]
        y = f(scale[k] s[n, p, q, k] + offset[k] + residual[n, p, q, k])

    x: the parts of a `boxes.view`; w: of (groups taps, C, K); scale and offset: (groups K,) float32 or None;
    residual: parts like y; channels: K', groups K unless TMA may write fewer.
    """
    shape = (*boxes.covered(plan.sizes, plan.box), channels)
    lead = plan.stages, WARPGROUPS
    boxed = machine.boxed(*lead, rows=plan.rows, box=plan.box, channels=plan.chunk)
    weights = machine.shared(plan.stages, plan.chunk, plan.columns, dtype=jnp.bfloat16, swizzle=2 * plan.chunk)
    scratch = {
        "x": [boxed] * plan.parts,
        "w": [weights] * plan.parts,
        "here": plgpu.Barrier(num_arrivals=plan.parts * (WARPGROUPS + 1), num_barriers=plan.stages),
        "free": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=plan.stages),
        "residual": plgpu.Barrier(num_arrivals=plan.parts * (plan.columns // plan.chunk), num_barriers=WARPGROUPS),
    }

    def body(inputs, outputs, scratch):
        warpgroup = lax.axis_index("warpgroup")
        tile, column = divide(lax.axis_index("item"), plan.groups * (plan.features // plan.columns))
        group, column = divide(column, plan.features // plan.columns)
        at = tile, group, column * np.int32(plan.columns)

        @pl.when(warpgroup == WARPGROUPS)
        def _():
            plgpu.set_max_registers(40, action="decrease")
            _produce(plan, inputs, scratch, *at)

        @pl.when(warpgroup < WARPGROUPS)
        def _():
            plgpu.set_max_registers(232, action="increase")
            _consume(plan, inputs, outputs, scratch, warpgroup, *at)

    inputs = {"x": x, "w": w}
    inputs |= {name: v for name, v in (("scale", scale), ("offset", offset), ("residual", residual)) if v is not None}
    out = [jax.ShapeDtypeStruct(shape, jnp.bfloat16)] * plan.parts
    found = machine.launch(body, name, plan.grid, inputs, out, scratch, WARPGROUPS + 1)
    return [boxes.cut(y, plan.sizes) for y in found]


def _starts(plan, tile, warpgroup):
    counts = boxes.count(plan.sizes, plan.box)
    last = np.int32(math.prod(counts) - 1)  # which two warpgroups find, and one writes, where their number is odd
    return boxes.start(jnp.minimum(tile * np.int32(WARPGROUPS) + warpgroup, last), counts, plan.box)


def _produce(plan, inputs, scratch, tile, group, column):
    starts = [_starts(plan, tile, np.int32(warpgroup)) for warpgroup in range(WARPGROUPS)]
    taps = math.prod(walk.count for walk in plan.walks)

    def step(number, carry):
        slot = divide(number, plan.stages)[1]
        tap, chunk = divide(number, plan.chunks)
        channel = chunk * np.int32(plan.chunk)
        inside = group * np.int32(plan.channels) + channel, plan.groups * plan.channels, plan.chunk

        @pl.when(number >= plan.stages)
        def _():
            plgpu.barrier_wait(scratch["free"].at[slot])

        here = scratch["here"].at[slot]
        for source, tiles in zip(inputs["x"], scratch["x"], strict=True):
            for warpgroup, start in enumerate(starts):
                at = boxes.seen(plan.walks, tap, start, plan.box, *inside)
                plgpu.copy_gmem_to_smem(source.at[at], machine.landing(tiles, (slot, warpgroup), plan.box), here)
        at = group * np.int32(taps) + tap, pl.ds(channel, plan.chunk), pl.ds(column, plan.columns)
        for source, tiles in zip(inputs["w"], scratch["w"], strict=True):
            plgpu.copy_gmem_to_smem(source.at[at], tiles.at[slot], here)
        return carry

    lax.fori_loop(np.int32(0), np.int32(plan.steps), step, None)
    for number in range(max(0, plan.steps - plan.stages), plan.steps):  # no barrier is left in the middle of a phase
        plgpu.barrier_wait(scratch["free"].at[number % plan.stages])


def _consume(plan, inputs, outputs, scratch, warpgroup, tile, group, column):
    def operands(number):
        slot = divide(number, plan.stages)[1]
        plgpu.barrier_wait(scratch["here"].at[slot])
        left = [machine.matrix(ref, (slot, warpgroup), plan.rows) for ref in scratch["x"]]
        right = [ref.at[slot] for ref in scratch["w"]]
        return [machine.pairs(left, right)]

    def release(number):
        plgpu.barrier_arrive(scratch["free"].at[divide(number, plan.stages)[1]])

    [sums] = machine.accumulate((plan.rows, plan.columns), 1, np.int32(plan.steps), operands, release)
    image, row, left = _starts(plan, tile, warpgroup)
    images, rows, columns = plan.box
    first = group * np.int32(plan.features) + column
    pixels = pl.ds(image, images), pl.ds(row, rows), pl.ds(left, columns)

    # This warpgroup has read all boxes of its own that there will be: they take the residual, and then the result.
    def place(part, piece):
        return scratch["x"][part], (piece % plan.stages, warpgroup)

    def features(piece):
        return pl.ds(first + np.int32(piece * plan.chunk), plan.chunk)

    pieces = range(plan.columns // plan.chunk)
    if "residual" in inputs:
        here = scratch["residual"].at[warpgroup]
        for piece in pieces:
            for part, source in enumerate(inputs["residual"]):
                ref, at = place(part, piece)
                plgpu.copy_gmem_to_smem(source.at[*pixels, features(piece)], machine.landing(ref, at, plan.box), here)
        plgpu.barrier_wait(here)
    for piece in pieces:
        y = lax.slice(sums, (0, piece * plan.chunk), (plan.rows, (piece + 1) * plan.chunk))
        y = _epilogue(
            plan,
            inputs,
            y,
            features(piece),
            [machine.matrix(*place(part, piece), plan.rows) for part in range(plan.parts)],
        )
        for part, value in enumerate(machine.split(y, jnp.bfloat16, plan.parts)):
            machine.matrix(*place(part, piece), plan.rows)[...] = value
    plgpu.commit_smem()

    @pl.when(tile * np.int32(WARPGROUPS) + warpgroup < np.int32(math.prod(boxes.count(plan.sizes, plan.box))))
    def _():
        for piece in pieces:
            for part, target in enumerate(outputs):
                ref, at = place(part, piece)
                plgpu.copy_smem_to_gmem(machine.landing(ref, at, plan.box), target.at[*pixels, features(piece)])

    plgpu.wait_smem_to_gmem(0)


def _epilogue(plan, inputs, y, features, residual):
    def vector(name):
        values = machine.load(inputs[name].at[features], machine.COLUMNS)
        return lax.broadcast_in_dim(values, y.shape, (1,))

    y = y * vector("scale") if "scale" in inputs else y
    y = y + vector("offset") if "offset" in inputs else y
    if "residual" in inputs:
        y = sum((machine.load(part, machine.TILE).astype(jnp.float32) for part in residual), start=y)
    return y if plan.activation is None else ACTIVATIONS[plan.activation](y)
