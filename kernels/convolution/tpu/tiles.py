"""Images laid out for a TPU: rows, columns, images, channels, so that a shift along a row moves no data in a register.

The last two axes are those that a register tiles, 8 or 16 images by 128 channels; a window's taps are then whole
registers at other addresses, and rows, columns and images together are the rows of a matrix product. It is how XLA too
lays out images between convolutions, so the transpositions here are of no cost between two layers. Of fewer images,
strips of rows (each with its halo) take the place of images.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import target
from kernels.convolution.tpu.walk import Walk
from kernels.convolution.windows import Pair

LANES = 128
ROWS = 1024  # of one matrix product, at most
FEW = 256  # of an elementwise product, which should stay in registers
BLOCK = 3 << 19  # bytes of images in a step's block
VMEM = 29 << 19  # bytes of blocks; compilers give a kernel 16 MiB at least
TAPS = 128  # of a window, at most: each is a product of its own


class Tiles(NamedTuple):
    """How outputs are cut: `strips` an image, then (rows, columns, block of images) a step, `chunk` rows a product.

    images: how many there are, N.
    """

    walks: tuple[Walk, Walk]
    images: int
    strips: int
    rows: int
    columns: int
    block: int
    chunk: int

    @property
    def taps(self) -> dict[Pair, list[tuple[int, Pair, Pair]]]:
        """Of each phase of the outputs: (index in the kernel, phase, offset) of the taps."""
        down, across = self.walks
        width = 1 + max(i for _, i, *_ in across.taps)
        return {
            (oh, ow): [
                (i * width + j, (ph, pw), (a, b))
                for o, i, ph, a in down.taps
                if o == oh
                for q, j, pw, b in across.taps
                if q == ow
            ]
            for oh in range(down.outs)
            for ow in range(across.outs)
        }

    @property
    def steps(self) -> tuple[int, int, int]:
        """Of images, rows and columns."""
        down, across = self.walks
        return (
            -(-self.images * self.strips // self.block),
            -(-down.count // self.strips // self.rows),
            -(-across.count // self.columns),
        )

    @property
    def matrix(self) -> int:
        """Rows of one matrix product."""
        return self.chunk * self.columns * self.block

    def view(self, ref, i, phase=(0, 0), offset=(0, 0)) -> jax.Array:
        """What a tap sees of the block in chunk i: (rows of a matrix, C)."""
        (ph, pw), (a, b) = phase, offset
        window = ref[pl.ds(i * self.chunk + a, self.chunk), ph, b : b + self.columns, pw]
        return window.reshape(self.matrix, -1)

    def put(self, ref, i, phase, value) -> None:
        """Write chunk i of a phase of the outputs, (rows of a matrix, K)."""
        block = (self.chunk, self.columns, self.block, value.shape[1])
        ref[pl.ds(i * self.chunk, self.chunk), phase[0], :, phase[1]] = value.astype(ref.dtype).reshape(block)

    def chunks(self, body: Callable) -> None:
        """body(i) for each chunk of a step."""
        count = self.rows // self.chunk
        pl.loop(0, count)(body) if count > 1 else body(0)

    def spec(self, channels: int, inputs: bool, place: Callable) -> pl.BlockSpec:
        """The block of inputs with its halo, or of outputs; `place` gives (n, u, v, channel block) from program ids."""
        halo, phases = self._reach(inputs)

        def index(*ids):
            n, u, v, c = place(*ids)
            # The compiler wants to see that registers are whole, or that there is one block.
            return u * self.rows, 0, v * self.columns, 0, n * self.block, 0 if channels % LANES else c * channels

        sides = (self.rows + halo[0], phases[0], self.columns + halo[1], phases[1], self.block, channels)
        return pl.BlockSpec(tuple(pl.Element(side) for side in sides), index)

    def _reach(self, inputs: bool) -> tuple[Pair, Pair]:
        """Units beyond a block's own, and phases of a unit."""
        down, across = self.walks
        return ((down.halo, across.halo), (down.ins, across.ins)) if inputs else ((0, 0), (down.outs, across.outs))

    def enter(self, x: jax.Array, inputs: bool, fill: float = 0.0) -> jax.Array:
        """(N, H, W, C) as (units of rows, phases, units of columns, phases, images and strips, C), padded."""
        down, across = self.walks
        n, u, v = self.steps
        halo, phases = self._reach(inputs)
        lows = (down.low, across.low) if inputs else (0, 0)
        fill = jnp.asarray(fill, x.dtype)
        each = u * self.rows  # units of rows of a strip
        # What outputs see, and no more: a row that none sees is cut.
        ends = [p * (c + h) for p, c, h in zip(phases, (down.count, across.count), halo, strict=True)]
        cut = [(low, end - low - size, 0) for low, end, size in zip(lows, ends, x.shape[1:3], strict=True)]
        x = lax.pad(x, fill, ((0, 0, 0), *cut, (0, 0, 0)))
        units = (self.stride * (self.strips - 1) + each + halo[0], v * self.columns + halo[1])
        more = [(0, p * c - size, 0) for p, c, size in zip(phases, units, x.shape[1:3], strict=True)]
        x = lax.pad(x, fill, ((0, 0, 0), *more, (0, 0, 0)))
        span = phases[0] * (each + halo[0])
        starts = [phases[0] * self.stride * i for i in range(self.strips)]
        own = span if inputs else phases[0] * self.stride  # an output beyond is the next strip's
        x = jnp.stack([x[:, at : at + own] for at in starts], axis=1)  # (N, strips, H, W, C)
        x = x.reshape(-1, *x.shape[2:]).transpose(1, 2, 0, 3)  # (H, W, N strips, C)
        x = lax.pad(x, fill, ((0, span - own, 0), (0, 0, 0), (0, n * self.block - x.shape[2], 0), (0, 0, 0)))
        return x.reshape(-1, phases[0], units[1], phases[1], *x.shape[2:])

    def leave(self, y: jax.Array, size: Pair) -> jax.Array:
        """The outputs as (N, *size, K)."""
        y = y.reshape(y.shape[0] * y.shape[1], -1, *y.shape[4:])[:, :, : self.images * self.strips]
        y = y.transpose(2, 0, 1, 3)  # (N strips, H, W, K)
        y = y[:, : self.stride * self.walks[0].outs].reshape(self.images, -1, *y.shape[2:])
        return y[:, : size[0], : size[1]]

    @property
    def stride(self) -> int:
        """Units of rows from a strip to the next."""
        return -(-self.walks[0].count // self.strips)

    def shape(self, channels: int) -> tuple[int, ...]:
        """Of the outputs."""
        (n, u, v), (down, across) = self.steps, self.walks
        return u * self.rows, down.outs, v * self.columns, across.outs, n * self.block, channels


def tile(walks: tuple[Walk, Walk], images: int, dtype, channels: int, elementwise: bool = False) -> Tiles:
    """Products of ROWS or FEW rows at most, as little padded as can be; steps of as many as a block has room for."""
    down, across = walks
    if (number := len(down.taps) * len(across.taps)) > TAPS:
        raise NotImplementedError(f"has windows of up to {TAPS} taps, not {number}")
    # A product of float32 takes six passes, all of them instructions, and each phase of the outputs has its own.
    work = (4 if dtype == jnp.float32 else 1) * down.outs * across.outs
    wanted = FEW if elementwise else max(ROWS // work, FEW)
    sublanes = 32 // jnp.dtype(dtype).itemsize
    strips = min(-(-sublanes // images), down.count)
    rows, block = -(-down.count // strips), sublanes
    columns = _part(across.count, max(wanted // block, 1))
    chunk = _part(rows, max(wanted // (block * columns), 1))
    while 2 * block * columns * chunk <= wanted and block < images * strips:
        block *= 2
    row = columns * block * -(-channels // LANES) * LANES * jnp.dtype(dtype).itemsize
    row *= max(down.ins * across.ins, down.outs * across.outs)
    chunks = -(-rows // chunk)
    many = _part(chunks, max(BLOCK // (row * chunk), 1))
    return Tiles(walks, images, strips, chunk * many, columns, block, chunk)


def _part(whole: int, most: int) -> int:
    """The size, `most` at most, of equal parts that cover the whole with the least excess; of those the largest."""
    sizes = range(max(most // 2, 1), min(most, whole) + 1) if most < whole else [whole]
    return min(sizes, key=lambda size: (-(-whole // size) * size, -size))


def call(
    kernel: Callable, name: str, operands, grid, in_specs, out_spec, out_shape, dtype, scratch, parallel: int
) -> Any:
    """Run kernel(*inputs, output, *scratch) over a grid, of which the first axes are parallel."""
    pairs = [*zip(in_specs, operands, strict=True), (out_spec, jax.ShapeDtypeStruct(out_shape, dtype))]
    # Blocks are two each, for the copies to overlap with the work.
    room = 2 * sum(_room(_sides(spec), array.dtype) for spec, array in pairs)
    room += sum(_room(shape, jnp.float32) for shape in scratch)
    if room > VMEM:
        raise NotImplementedError(f"has no room in VMEM for blocks of {room >> 20} MiB")
    # Within shard_map a result differs from device to device where the inputs do.
    kind = jax.typeof(operands[0]).manual_axis_type
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_spec,
        out_shape=jax.ShapeDtypeStruct(out_shape, dtype, manual_axis_type=kind),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * parallel + ("arbitrary",) * (len(grid) - parallel)
        ),
        interpret=target.interpreter() or False,
        name=name,
    )(*operands)


def _sides(spec: pl.BlockSpec) -> tuple[int, ...]:
    return tuple(side.block_size if isinstance(side, pl.Element) else side for side in spec.block_shape)


def _room(shape: tuple[int, ...], dtype) -> int:
    """Bytes of a block in VMEM, where registers are whole."""
    size = jnp.dtype(dtype).itemsize
    *more, rows, lanes = shape
    return math.prod(more) * -(-rows * size // 32) * 32 * -(-lanes // LANES) * LANES


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b, summed in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)
