"""Depthwise convolution: each channel by itself."""

import functools
import math
from typing import NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.attention.hopper.plan import divide
from kernels.convolution.hopper import boxes, channelwise, machine
from kernels.convolution.hopper.activations import ACTIVATIONS
from kernels.convolution.hopper.boxes import Part, Walk
from kernels.convolution.hopper.channelwise import CHUNK, PIXELS, PLAIN, WARPGROUPS, Field, Plan
from kernels.convolution.hopper.product import CORES
from kernels.convolution.windows import Pair

STAGES = 2


def correlate(
    name: str,
    parts: dict[Pair, Part],
    walks: tuple[Walk, Walk],
    size: Pair,
    x: jax.Array,
    w: jax.Array,
    scale: jax.Array | None = None,
    offset: jax.Array | None = None,
    residual: jax.Array | None = None,
    activation: str | None = None,
    strides: Pair = (1, 1),
) -> jax.Array:
    """y[n, p, q, c] = activation(scale[c] sum_ij x[n, a_pi, b_qj, c] w[i, j, c] + offset[c] + residual[n, p, q, c]).

    parts: phase of the outputs, of which there are `strides` -> its taps; walks: over all that they see;
    x: (N, H, W, C); w: (kh, kw, C); scale and offset: (C,) or None; residual: (N, *size, C) or None.
    """
    channels = x.shape[3]
    arrays = [(x, walks)] + ([] if residual is None else [(residual, PLAIN)])
    fields = [Field(own, array.dtype) for array, own in arrays]
    extent = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    plan = channelwise.planned((x.shape[0], *extent), channels, fields, x.dtype)
    given = {name: v for name, v in (("w", w), ("scale", scale), ("offset", offset)) if v is not None}
    short = [(0, plan.chunks * CHUNK - channels)]
    vectors = {
        name: jnp.pad(v.astype(jnp.float32), [(0, 0)] * (v.ndim - 1) + short).reshape(-1, plan.chunks * CHUNK)
        for name, v in given.items()
    }

    def compute(part, load, vector, row, column):
        def spread(name, at=0):
            return channelwise.spread(vector(name, at), plan.columns)

        def visit(i, j, number, y):
            return y + load(0, i, j) * spread("w", number)

        y = channelwise.taps(part, walks, w.shape[1], visit, channelwise.full(plan, 0.0))
        y = y * spread("scale") if "scale" in vectors else y
        y = y + spread("offset") if "offset" in vectors else y
        y = y if residual is None else y + load(1, 0, 0)
        return y if activation is None else ACTIVATIONS[activation](y)

    entered = [channelwise.entered(array, own) for array, own in arrays]
    computes = {at: functools.partial(compute, part) for at, part in parts.items()}
    y = channelwise.run(name, plan, fields, entered, vectors, x.dtype, computes, strides)
    return boxes.cut(y, (x.shape[0], *size))


def fits(walks: tuple[Walk, Walk], sizes: boxes.Box, channels: int, dtype) -> bool:
    """Whether shared memory has room for what a few outputs see; inputs are seen by no more."""
    both = [Field(walks, dtype), Field(PLAIN, dtype)]
    return (
        channelwise.planned(sizes, channels, both, dtype) is not None
        and _rows(sizes, channels, walks, dtype) is not None
    )


def _rows(sizes, channels, walks, dtype):
    """Boxes of which shared memory holds STAGES of what a row of the kernel sees, and of dy."""
    both = [Field((Walk(1, 0, 0), walks[1]), dtype), Field(PLAIN, dtype)]
    return channelwise.planned(sizes, channels, both * STAGES, jnp.dtype(jnp.int8))


class Pieces(NamedTuple):
    """The pixels in boxes, `each` of them for a block."""

    plan: Plan
    each: int
    count: int


def _pieces(plan, rows):
    """As many pieces as keep the cores busy."""
    sizes = plan.sizes
    total = math.prod(boxes.count(sizes, plan.box))
    each = -(-total // min(total, max(1, 2 * CORES // (rows * plan.chunks))))
    return Pieces(plan, each, -(-total // each))


def weight_gradient(walks: tuple[Walk, Walk], x: jax.Array, dy: jax.Array) -> jax.Array:
    """dw[i, j, c] = sum_npq x[n, s p + a_i, s q + b_j, c] dy[n, p, q, c], (kh, kw, C) float32.

    A block has a row of the kernel and a piece of the pixels; pieces are added up in order.
    """
    channels, (rows, columns) = x.shape[3], (walk.count for walk in walks)
    field = Field((Walk(1, 0, 0), walks[1]), x.dtype)  # the row of the images that a row of the kernel sees
    plan, each, count = pieces = _pieces(_rows(dy.shape[:3], channels, walks, x.dtype), rows)
    shapes = field.extent(plan.box), Field(PLAIN, dy.dtype).extent(plan.box)
    scratch = {
        "x": plgpu.SMEM((STAGES, *shapes[0], CHUNK), x.dtype),
        "dy": plgpu.SMEM((STAGES, *shapes[1], CHUNK), dy.dtype),
        "here": plgpu.Barrier(num_arrivals=len(field.sides) + 1, num_barriers=STAGES),
        "free": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=STAGES),
    }

    def body(inputs, output, scratch):
        warpgroup = lax.axis_index("warpgroup")
        rest, chunk = divide(lax.axis_index("item"), plan.chunks)
        piece, i = divide(rest, rows)
        first, channel = piece * np.int32(each), chunk * np.int32(CHUNK)
        total = math.prod(boxes.count(plan.sizes, plan.box))
        steps = jnp.minimum(np.int32(each), np.int32(total) - first)

        @pl.when(warpgroup == WARPGROUPS)
        def _():
            _produce(pieces, walks, field, inputs, scratch, first, steps, i, channel)

        @pl.when(warpgroup < WARPGROUPS)
        def _():
            for j, total in enumerate(_consume(pieces, field, scratch, columns, steps, warpgroup)):
                output.at[piece, warpgroup, i, j, :, pl.ds(channel, CHUNK)][...] = total

    out = jax.ShapeDtypeStruct((count, WARPGROUPS, rows, columns, PIXELS, plan.chunks * CHUNK), jnp.float32)
    inputs = {"x": channelwise.entered(x, walks), "dy": channelwise.entered(dy)}
    name = "convolution_depthwise_weight_gradient"
    found = machine.launch(body, name, count * rows * plan.chunks, inputs, out, scratch, WARPGROUPS + 1)
    return found.sum((0, 1, 4))[..., :channels]


def _produce(pieces, walks, field, inputs, scratch, first, steps, i, channel):
    plan = pieces.plan
    down, phase = walks[0].place(i)
    down = down + boxes.shift(walks[0])
    right = boxes.shift(walks[1]) + np.int32(walks[1].low)
    _, rows, _, columns = field.extent(plan.box)

    def step(number, carry):
        slot = divide(number, STAGES)[1]
        image, row, column = boxes.start(first + number, boxes.count(plan.sizes, plan.box), plan.box)

        @pl.when(number >= STAGES)
        def _():
            plgpu.barrier_wait(scratch["free"].at[slot])

        here = scratch["here"].at[slot]
        for place, side in enumerate(field.sides):
            inside = pl.ds(np.int32(side * channelwise.padded(plan.channels, walks[1].stride)) + channel, CHUNK)
            at = image, pl.ds(row + down, rows), pl.ds(phase, 1), pl.ds(column + right, columns), inside
            plgpu.copy_gmem_to_smem(inputs["x"].at[at], scratch["x"].at[slot, place], here)
        at = image, pl.ds(row, plan.rows), pl.ds(0, 1), pl.ds(column, plan.columns), pl.ds(channel, CHUNK)
        plgpu.copy_gmem_to_smem(inputs["dy"].at[at], scratch["dy"].at[slot, 0], here)
        return carry

    lax.fori_loop(np.int32(0), steps, step, None)
    for slot in range(STAGES):  # no barrier is left in the middle of a phase

        @pl.when(steps > slot)
        def _(slot=slot):
            plgpu.barrier_wait(scratch["free"].at[slot])


def _consume(pieces, field, scratch, columns, steps, warpgroup):
    plan = pieces.plan

    def load(ref, *at):
        return machine.load(ref.at[at], channelwise.TILE).astype(jnp.float32)  # (8, 64)

    def step(number, totals):
        slot = divide(number, STAGES)[1]
        plgpu.barrier_wait(scratch["here"].at[slot])

        def row(number, totals):
            mine = number * np.int32(WARPGROUPS) + warpgroup
            for start in range(0, plan.columns, PIXELS):
                dy = load(scratch["dy"], slot, 0, mine, 0, pl.ds(start, PIXELS))
                seen = []
                for j in range(columns):
                    side, _, _, right = field.tap(0, j)
                    seen.append(load(scratch["x"], slot, side, mine, 0, pl.ds(right + start, PIXELS)))
                totals = [total + x * dy for total, x in zip(totals, seen, strict=True)]
            return totals

        totals = lax.fori_loop(np.int32(0), np.int32(plan.rows // WARPGROUPS), row, totals)
        plgpu.barrier_arrive(scratch["free"].at[slot])
        return totals

    zeros = machine.full((PIXELS, CHUNK), 0.0, channelwise.TILE)
    return lax.fori_loop(np.int32(0), steps, step, [zeros] * columns)
