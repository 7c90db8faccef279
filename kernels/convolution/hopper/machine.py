"""Boxes of pixels in shared memory, as TMA writes and as wgmma reads them; in interpret mode the same in plain JAX.

TMA writes the pixels of a box one after the other, wherever in an image it starts: rows of a matrix, swizzled as wgmma
wants them, which knows them as tiles of 8 rows. It is the same memory under two types. Interpret mode has one type for
it, and an accumulator that is an array.
"""

import math

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import target
from kernels.attention.hopper import machine
from kernels.attention.hopper.machine import Transposed, full, launch, load, shared, split, transposed
from kernels.convolution.hopper.boxes import Box

__all__ = [
    "TILE",
    "Transposed",
    "accumulate",
    "boxed",
    "full",
    "landing",
    "launch",
    "load",
    "matrix",
    "pairs",
    "shared",
    "split",
    "transposed",
]

TILE, COLUMNS = machine.TILE, machine.COLUMNS


def boxed(*lead: int, rows: int, box: Box, channels: int):
    """The scratch type of boxes of pixels as matrices of `rows` rows; those beyond the box are nobody's."""
    if target.interpreter() is not None:
        return plgpu.SMEM((*lead, *box, channels), jnp.bfloat16)
    swizzle, shape = plgpu.SwizzleTransform(2 * channels), (*lead, rows, channels)
    return plgpu.RefUnion(
        plgpu.SMEM(shape, jnp.bfloat16, transforms=(swizzle,)),
        plgpu.SMEM(shape, jnp.bfloat16, transforms=(plgpu.TilingTransform((8, channels)), swizzle)),
    )


def landing(ref, at: tuple, box: Box):
    """Where TMA writes a box to, or reads it from: (images, rows, columns, channels)."""
    if target.interpreter() is not None:
        return ref.at[at]
    flat, _ = ref
    return flat.at[(*at, pl.ds(0, math.prod(box)))].reshape(*box, flat.shape[-1])


def matrix(ref, at: tuple, rows: int):
    """The matrix (rows, channels) that it is."""
    if target.interpreter() is not None:
        return _Matrix(ref.at[at], rows)
    _, tiles = ref
    return tiles.at[at]


class _Matrix:
    """A box in the interpreter's shared memory as a matrix."""

    def __init__(self, ref, rows):
        self.ref, self.shape, self.dtype = ref, (rows, ref.shape[-1]), ref.dtype

    def __getitem__(self, _):
        x = self.ref[...].reshape(-1, self.shape[1])
        return jnp.pad(x, ((0, self.shape[0] - x.shape[0]), (0, 0)))

    def __setitem__(self, _, x):
        self.ref[...] = x[: math.prod(self.ref.shape[:-1])].reshape(self.ref.shape)


def accumulate(shape: tuple, count: int, steps, operands, release) -> list:
    """`count` sums over steps of the products of matrices in operands(step), pairs of them for each sum, in float32.

    A step's products are under way while those of the step before are waited for, whose operands `release(step)` lets
    go.
    """
    if target.interpreter() is not None:

        def step(number, totals):
            pairs = operands(number)
            totals = [sum((_dot(*pair) for pair in own), start=total) for own, total in zip(pairs, totals, strict=True)]
            plgpu.commit_smem()  # a product reads as a load does, and not as wgmma, in order with TMA's writes
            release(number)
            return totals

        return lax.fori_loop(np.int32(0), steps, step, [jnp.zeros(shape, jnp.float32)] * count)

    def run(*totals):
        def step(number, carry):
            pairs = operands(number)
            for own, total in zip(pairs, totals, strict=True):
                for pair in own:
                    plgpu.wgmma(total, *(x.ref.transpose((1, 0)) if isinstance(x, Transposed) else x for x in pair))
            plgpu.wgmma_wait(sum(map(len, pairs)))
            pl.when(number > 0)(lambda: release(number - 1))
            return carry

        lax.fori_loop(np.int32(0), steps, step, None)
        plgpu.wgmma_wait(0)
        release(steps - 1)
        return [total[...] for total in totals]

    return pl.run_scoped(run, *[plgpu.ACC(shape, jnp.float32)] * count)


def pairs(left: list, right: list) -> list:
    """What to multiply of two matrices in parts: all with all, but the low with the low."""
    return [(a, b) for i, a in enumerate(left) for j, b in enumerate(right) if i + j < 2]


def _dot(a, b):
    a, b = (x.ref[...].T if isinstance(x, Transposed) else x[...] for x in (a, b))
    return lax.dot(a, b, preferred_element_type=jnp.float32)
