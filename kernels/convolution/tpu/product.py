"""The kernel of both the forward pass and the input's gradient: for each of the window's taps a matrix product.

    y[u, v] = sum_t x[u + a_t, v + b_t] w[t],   and what follows it

The windows' rows are never laid out in memory: a tap is a view of the block in VMEM.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.convolution.epilogue import Epilogue
from kernels.convolution.tpu.channels import Blocks
from kernels.convolution.tpu.tiles import Tiles, call, dot

ROWS = ("bias", "scale", "shift")  # of the epilogue, (K,)
NOTHING = Epilogue()


def product(
    name: str,
    tiles: Tiles,
    blocks: Blocks,
    x: jax.Array,
    w: jax.Array,
    size: tuple[int, int],
    dtype,
    follow: Epilogue = NOTHING,
) -> jax.Array:
    """x (N, H, W, C) -> (N, *size, K), with w (taps, C', K') as `blocks` lays it out, or (taps, K') depthwise."""
    few, many = blocks.steps
    # A block of outputs k at a time, whose weights stay in VMEM while the images pass by.
    outputs = lambda k, n, u, v, c: (n, u, v, k)  # noqa: E731
    inputs = lambda k, n, u, v, c: (n, u, v, blocks.seen(k, c))  # noqa: E731
    row = pl.BlockSpec((1, blocks.k), lambda k, n, u, v, c: (0, k))
    if blocks.depthwise:
        weights = pl.BlockSpec((w.shape[0], blocks.k), lambda k, n, u, v, c: (0, k))
    else:
        weights = pl.BlockSpec((w.shape[0], blocks.c, blocks.k), lambda k, n, u, v, c: (0, c, k))
    operands = {"x": (tiles.enter(blocks.pad(x), True), tiles.spec(blocks.c, True, inputs)), "w": (w, weights)}
    for field in ROWS:
        if (value := getattr(follow, field)) is not None:
            operands[field] = blocks.pad(value.astype(jnp.float32), outputs=True)[None], row
    if follow.residual is not None:
        residual = tiles.enter(blocks.pad(follow.residual, outputs=True), False)
        operands["residual"] = residual, tiles.spec(blocks.k, False, outputs)
    y = call(
        functools.partial(_kernel, tiles, blocks, tuple(operands), follow.activation),
        name,
        [array for array, _ in operands.values()],
        (many, *tiles.steps, few),
        [spec for _, spec in operands.values()],
        tiles.spec(blocks.k, False, outputs),
        tiles.shape(many * blocks.k),
        dtype,
        [(len(tiles.taps), tiles.rows * tiles.columns * tiles.block, blocks.k)] if few > 1 else [],
        parallel=4,
    )
    return blocks.cut(tiles.leave(y, size))


def _kernel(tiles, blocks, names, activation, *refs):
    """One block of outputs; with more than one of inputs, in float32 until the last."""
    inputs, (y_ref, *scratch) = dict(zip(names, refs, strict=False)), refs[len(names) :]
    x_ref, w_ref = inputs["x"], inputs["w"]
    few, step = blocks.steps[0], pl.program_id(4)

    def multiply(window, t):
        if blocks.depthwise:
            return window.astype(jnp.float32) * w_ref[t : t + 1].astype(jnp.float32)
        return dot(window, w_ref[t])

    def finish(y, i, phase):
        """The epilogue, of (rows, K)."""
        given = {field: inputs[field][0] for field in ROWS if field in inputs}
        if "residual" in inputs:
            given["residual"] = tiles.view(inputs["residual"], i, phase)[None, None]
        tiles.put(y_ref, i, phase, Epilogue(**given, activation=activation)(y[None, None])[0, 0])

    def chunk(i):
        for number, (phase, taps) in enumerate(tiles.taps.items()):
            y = jnp.zeros((tiles.matrix, y_ref.shape[-1]), jnp.float32)
            for t, *tap in taps:
                y += multiply(tiles.view(x_ref, i, *tap), t)
            if few == 1:
                finish(y, i, phase)
            else:
                (sum_ref,), rows = scratch, pl.ds(i * tiles.matrix, tiles.matrix)
                y += jnp.where(step > 0, sum_ref[number, rows], 0.0)
                sum_ref[number, rows] = y
                pl.when(step == few - 1)(functools.partial(finish, y, i, phase))

    tiles.chunks(chunk)
