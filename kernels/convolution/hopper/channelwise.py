"""Windows that slide over each channel by itself: what is summed up, or compared, is in registers; no matrix product.

A block has a box of outputs and 64 channels. It copies all that the window sees of the images into shared memory at
once, from where each tap reads its own pixels; other blocks of the core compute meanwhile.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import target
from kernels.attention.hopper.plan import divide
from kernels.convolution.hopper import boxes, machine
from kernels.convolution.hopper.boxes import Walk

CHUNK = 64  # channels of a block
PIXELS = 8  # that a warpgroup reads at once, 4 channels a thread
WARPGROUPS = 2
UNROLLED = 9  # taps
PHASES = 64  # of a stride, each of which has its own part of a program
ROOM = 72 << 10  # bytes of shared memory of a block, such that a core has three of them
MEMORY = 220 << 10
PLAIN = Walk(1, 0, 0), Walk(1, 0, 0)

TILE = plgpu.Layout.TILED(
    plgpu.Tiling(((PIXELS, CHUNK), (2, CHUNK), (4,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)
CHANNELS = TILE.reduce(0)


class Plan(NamedTuple):
    """sizes: N, H' and W' of the outputs; rows and columns: of a block's; channels: C."""

    sizes: boxes.Box
    rows: int
    columns: int
    channels: int

    @property
    def box(self) -> boxes.Box:
        return 1, self.rows, self.columns

    @property
    def chunks(self) -> int:
        return -(-self.channels // CHUNK)

    @property
    def grid(self) -> int:
        return math.prod(boxes.count(self.sizes, self.box)) * self.chunks


class Field(NamedTuple):
    """An input, (N, H / s, s, W / s, s C), and the pixels of it that each tap reads."""

    walks: tuple[Walk, Walk]
    dtype: Any

    def extent(self, box: boxes.Box) -> tuple[int, ...]:
        """Of what a box of outputs sees, in shared memory: (columns' phases, rows, rows' phases, columns)."""
        rows, columns = self.walks
        return len(self.sides), box[1] + rows.span, rows.stride, box[2] + columns.span

    @property
    def sides(self) -> list[int]:
        """The phases of columns that are read."""
        walk = self.walks[1]
        return sorted({walk.place(j)[1] for j in range(walk.count)})

    def bytes(self, box: boxes.Box) -> int:
        return math.prod(self.extent(box)) * CHUNK * jnp.dtype(self.dtype).itemsize

    def tap(self, i, j: int) -> tuple:
        """Where in shared memory the first output's tap is; i may be traced."""
        (a, phase), (b, side) = self.walks[0].place(i), self.walks[1].place(j)
        return self.sides.index(side), a - np.int32(self.walks[0].low), phase, b - self.walks[1].low


def planned(sizes: boxes.Box, channels: int, fields: list[Field], out) -> Plan | None:
    """The boxes that copy the least and of which shared memory holds three, or else one; None if it holds none."""
    found = []
    for columns in (PIXELS * n for n in (1, 2, 4, 7, 8) if PIXELS * (n - 1) < sizes[2]):
        for rows in (n for n in (2, 4, 8, 16, 32) if n < 2 * sizes[1] + 1):
            plan = Plan(sizes, rows, columns, channels)
            copied = sum(field.bytes(plan.box) for field in fields)
            used = copied + math.prod(plan.box) * CHUNK * jnp.dtype(out).itemsize
            if used <= MEMORY and all(max(field.extent(plan.box)) <= 256 for field in fields):
                found.append((used > ROOM, copied * plan.grid, -used, plan))
    return min(found)[-1] if found else None


def run(name: str, plan: Plan, fields: list[Field], arrays: list, vectors: dict, out, computes: dict, phases=(1, 1)):
    """(N, H' s, W' s, C) of a dtype: for each phase of the rows and columns compute(load, vector, row, column).

    arrays: each field's `boxes.view`; vectors: name -> (.., whole chunks of C) float32; computes: what finds a row of a
    block's outputs of a phase, (columns, 64) float32, from load(field, i, j), what a tap of the field's walks sees, and
    vector(name, *at), the block's channels of a vector; row and column: the first output's.
    """
    scratch = {
        "fields": [plgpu.SMEM((*field.extent(plan.box), CHUNK), field.dtype) for field in fields],
        "out": plgpu.SMEM((plan.rows, plan.columns, CHUNK), out),
        "here": plgpu.Barrier(num_arrivals=sum(len(field.sides) for field in fields)),
    }
    images, height, width = boxes.covered(plan.sizes, plan.box)
    channels = padded(plan.channels, phases[1])

    def body(inputs, output, scratch):
        warpgroup = lax.axis_index("warpgroup")
        box, chunk = divide(lax.axis_index("item"), plan.chunks)
        image, row, column = boxes.start(box, boxes.count(plan.sizes, plan.box), plan.box)
        channel = chunk * np.int32(CHUNK)

        @pl.when(warpgroup == 0)
        def _():
            for field, source, tile in zip(fields, inputs["fields"], scratch["fields"], strict=True):
                copy(plan, field, source, tile, (image, row, column), channel, scratch["here"])

        plgpu.barrier_wait(scratch["here"])

        def vector(name, *at):
            return machine.load(inputs["vectors"][name].at[(*at, pl.ds(channel, CHUNK))], CHANNELS)

        def each(visit):
            """The warpgroups take turns at the rows."""

            def step(number, carry):
                visit(number * np.int32(WARPGROUPS) + warpgroup)
                return carry

            lax.fori_loop(np.int32(0), np.int32(plan.rows // WARPGROUPS), step, None)

        for (above, side), compute in computes.items():

            @each
            def _(mine, compute=compute):
                def load(field, i, j):
                    phase, down, inside, right = fields[field].tap(i, j)
                    at = phase, mine + down, inside, pl.ds(right, plan.columns)
                    return machine.load(scratch["fields"][field].at[at], TILE).astype(jnp.float32)

                scratch["out"].at[mine][...] = compute(load, vector, row + mine, column).astype(out)

            plgpu.commit_smem()

            @each
            def _(mine, above=above, side=side):
                inside = pl.ds(np.int32(side * channels) + channel, CHUNK)

                @pl.when(row + mine < height)  # TMA would write what is beyond a single row to it
                def _():
                    target = output.at[image, row + mine, above, pl.ds(column, plan.columns), inside]
                    plgpu.copy_smem_to_gmem(scratch["out"].at[mine], target)

            plgpu.wait_smem_to_gmem(0)

    inputs = {"fields": arrays, "vectors": vectors}
    result = jax.ShapeDtypeStruct((images, height, phases[0], width, phases[1] * channels), out)
    found = machine.launch(body, name, plan.grid, inputs, result, scratch, WARPGROUPS)
    return found.reshape(images, height * phases[0], width * phases[1], channels)[..., : plan.channels]


def taps(part: boxes.Part, seen: tuple[Walk, Walk], columns: int, visit: Callable, first):
    """Fold visit(i, j, number, carry) over the taps of a part, row by row; many rows in a loop, which compiles once.

    i and j are those of the walks that a field has seen, and number is that of the tap in a kernel of so many columns.
    """

    def place(axis, tap):
        return tap if seen is part.walks else part.walks[axis].place(tap)[0] - seen[axis].low

    def row(i, carry):
        for j in range(part.walks[1].count):
            number = (part.rows.start + part.rows.step * i) * columns + part.columns.start + part.columns.step * j
            carry = visit(place(0, i), place(1, j), number, carry)
        return carry

    if part.taps <= UNROLLED:
        return functools.reduce(lambda carry, i: row(i, carry), range(part.walks[0].count), first)
    return lax.fori_loop(np.int32(0), np.int32(part.walks[0].count), row, first)


def copy(plan: Plan, field: Field, source, tile, start, channel, barrier):
    """Copy what a box of outputs sees."""
    image, row, column = start
    before = [boxes.shift(walk) + np.int32(walk.low) for walk in field.walks]
    _, rows, phases, columns = field.extent(plan.box)
    for number, side in enumerate(field.sides):
        inside = pl.ds(np.int32(side * padded(plan.channels, field.walks[1].stride)) + channel, CHUNK)
        at = image, pl.ds(row + before[0], rows), pl.ds(0, phases), pl.ds(column + before[1], columns), inside
        plgpu.copy_gmem_to_smem(source.at[at], tile.at[number], barrier)


def padded(channels: int, phases: int = 1) -> int:
    """The channels that an array must have: TMA clips at its end, but not between phases of a stride."""
    whole = phases > 1 or target.interpreter() is not None
    return -(-channels // CHUNK) * CHUNK if whole else -(-channels // 8) * 8


def entered(x: jax.Array, walks: tuple[Walk, Walk] = PLAIN) -> jax.Array:
    """(N, H, W, C) as a field's array."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded(x.shape[3], walks[1].stride) - x.shape[3])))
    return boxes.view(x, walks)


def spread(vector: jax.Array, columns: int) -> jax.Array:
    """A number a channel, for all pixels."""
    found = lax.broadcast_in_dim(vector, (columns, CHUNK), (1,))
    return found if target.interpreter() is not None else plgpu.layout_cast(found, TILE)


def full(plan: Plan, value: float) -> jax.Array:
    """A row of outputs, all of one value."""
    return machine.full((plan.columns, CHUNK), value, TILE)


def pixels(plan: Plan) -> jax.Array:
    """The number of each pixel of a row, for all channels."""
    found = lax.broadcasted_iota(jnp.int32, (plan.columns, CHUNK), 0)
    return found if target.interpreter() is not None else plgpu.layout_cast(found, TILE)
