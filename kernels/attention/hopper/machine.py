"""What a warpgroup does, in one place: on the GPU wgmma, TMA and layouts, in interpret mode the same in plain JAX.

Interpret mode knows no wgmma of registers or of transposed references, no accumulator that starts from a value, and no
layouts. Interpreted, a product reads its operands from shared memory as an array: those reads are checked for races.
"""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels import target
from kernels.meshes import varying

WARPGROUP = 64  # rows of one wgmma
TILE = plgpu.Layout.WGMMA
ROWS, COLUMNS = TILE.reduce(1), TILE.reduce(0)  # of a vector, one number a row or a column of a tile


def launch(body, name, grid, inputs, outputs, scratch, warpgroups):
    """Run `body(inputs, outputs, scratch)` on `grid` blocks of warpgroups; all three are trees of references."""
    flat, tree = jax.tree.flatten(inputs)
    out_types, out_tree = jax.tree.flatten(outputs)
    count = len(flat)

    def flattened(*refs):
        ins, (outs, kept) = refs[:count], (refs[count : count + len(out_types)], refs[-1])
        body(jax.tree.unflatten(tree, ins), jax.tree.unflatten(out_tree, outs), kept)

    found = plgpu.kernel(
        flattened,
        out_type=out_types,
        scratch_types=[scratch],
        grid=(grid,),
        grid_names=("item",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name=name,
        interpret=target.interpreter(),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(*flat)
    found, _ = varying((found, flat))  # plgpu.kernel types its results as the same on all devices
    return jax.tree.unflatten(out_tree, found)


def shared(*shape, dtype, swizzle):
    """Shared memory for (.., rows, depth) operands of wgmma, 16 bits wide: tiles of 8 rows by `swizzle` bytes."""
    tiling = plgpu.TilingTransform((8, swizzle // 2))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))


def product(left, right, start=None, *, meanwhile=None):
    """start + left right for matrices in one or two parts, left in registers or shared memory, right in shared memory.

    Of two parts, high and low, the product of the low ones falls away. `meanwhile` runs between issue and wait.
    """
    return products([(left, right, start)], meanwhile=meanwhile)[0]


def products(asked, *, meanwhile=None):
    """The `product` of each (left, right, start), issued together."""
    pairs = [_pairs(left, right) for left, right, _ in asked]
    starts = [
        full((pair[0][0].shape[0], pair[0][1].shape[1]), 0.0, TILE) if start is None else start
        for pair, (_, _, start) in zip(pairs, asked, strict=True)
    ]
    if target.interpreter() is not None:
        found = [sum((_dot(a, b) for a, b in pair), start=start) for pair, start in zip(pairs, starts, strict=True)]
        if meanwhile is not None:
            meanwhile()
        return found

    def issue(accumulators):
        for pair, accumulator in zip(pairs, accumulators, strict=True):
            for a, b in _pieces(pair):
                plgpu.wgmma(accumulator, a, b.ref.transpose((1, 0)) if isinstance(b, Transposed) else b)
        if meanwhile is not None:
            meanwhile()

    return pl.run_state(issue)([plgpu.ACC.init(start) for start in starts])


def overlapped(left, right, weights, value, start, between, state, meanwhile, ahead):
    """Scores = left right and total = start + weights value, issued one after the other; between(scores) -> a new state
    of the same shapes, while the second product is under way. Returns the total and the state. `meanwhile` runs after
    the issue; not `ahead`, each waits for the one before.
    """
    if target.interpreter() is not None or not ahead:
        [scores] = products([(left, right, None)])
        [total] = products([(weights, value, start)], meanwhile=meanwhile)
        return total, between(scores)
    flat, tree = jax.tree.flatten(state)
    start, *weights = lax.optimization_barrier((start, *weights))  # else some of them move while wgmma runs
    (scores_pairs, total_pairs) = _pairs(left, right), _pairs(weights, value)
    pieces = _pieces(scores_pairs)

    def issue(refs):
        scores, total, *kept = refs
        for a, b in pieces:
            plgpu.wgmma(scores, a, b.ref.transpose((1, 0)))
        for a, b in total_pairs:
            plgpu.wgmma(total, a, b)
        meanwhile()
        found = between(plgpu.wgmma_accumulator_load(scores, wait_n=len(total_pairs)))
        for ref, x in zip(kept, jax.tree.leaves(found), strict=True):
            ref[...] = x

    shape = scores_pairs[0][0].shape[0], scores_pairs[0][1].shape[1]
    accumulators = [plgpu.ACC.init(full(shape, 0.0, TILE)), plgpu.ACC.init(start)]
    _, total, *kept = pl.run_state(issue)([*accumulators, *flat])
    return total, jax.tree.unflatten(tree, kept)


class Transposed:
    """A matrix in shared memory as its transpose."""

    def __init__(self, ref):
        self.ref, self.shape, self.dtype = ref, ref.shape[::-1], ref.dtype


def transposed(parts):
    """The parts of a matrix in shared memory, each transposed."""
    return [Transposed(part) for part in parts]


def _pairs(left, right):
    """What to multiply: all parts with all, but the low with the low."""
    return [(a, b) for i, a in enumerate(left) for j, b in enumerate(right) if i + j < 2]


def _pieces(pairs):
    """Products of two parts a piece of the inner dimension at a time: else each piece of a part, which two products
    read, holds on to registers from the first to the second.
    """
    if len(pairs) == 1 or not isinstance(pairs[0][1], Transposed):
        return pairs
    inner = pairs[0][0].shape[1]
    step = 32 if inner % 64 else 64
    return [
        (a.at[:, pl.ds(start, step)], Transposed(b.ref.at[:, pl.ds(start, step)]))
        for start in range(0, inner, step)
        for a, b in pairs
    ]


def _dot(a, b):
    axis, b = (1, b.ref[...]) if isinstance(b, Transposed) else (0, b[...])
    return lax.dot_general(a[...], b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def split(x, dtype, parts):
    """x as a sum of `parts` numbers of a dtype: its rounding, and the rounding of what that leaves."""
    high = x.astype(dtype)
    return [high] if parts == 1 else [high, (x - high.astype(x.dtype)).astype(dtype)]


def load(ref, layout):
    """The array in shared or global memory."""
    return ref[...] if target.interpreter() is not None else plgpu.load(ref, (), layout=layout, optimized=False)


def full(shape, value, layout):
    """An array of one value."""
    x = jnp.full(shape, value, np.asarray(value).dtype if not isinstance(value, float) else jnp.float32)
    return x if target.interpreter() is not None else plgpu.layout_cast(x, layout)


def numbers(shape, axis, start):
    """start, start + 1, .. along an axis of a tile, a vector of int32."""
    found = lax.iota(jnp.int32, shape[axis])
    if target.interpreter() is None:
        found = plgpu.layout_cast(found, COLUMNS if axis else ROWS)
    found = found + start
    # Else the compiler keeps what does not depend on the start in registers, for each score, throughout the loop.
    return lax.optimization_barrier(found) if axis else found


def spread(vector, shape, axis):
    """A vector along an axis of a tile, the same along the other."""
    return lax.broadcast_in_dim(vector, shape, (axis,))
