"""The kernel's gradient: for each of the window's taps a matrix product over all pixels, block after block.

    dw[t] = sum_nuv x[n, u + a_t, v + b_t]^T dy[n, u, v]

computed as dw^T = dy^T x, since dy is the same for all taps: it is transposed once. Blocks that are not whole have dy =
0 where there is no output, so a pixel that is not finite may be NaN in taps of its channel that do not see it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels.convolution.tpu.channels import Blocks
from kernels.convolution.tpu.tiles import Tiles, call, dot

SUBLANES = 8  # rows of a register of float32


def gradient(tiles: Tiles, blocks: Blocks, x: jax.Array, dy: jax.Array) -> jax.Array:
    """x (N, H, W, C), dy (N, H', W', K) -> (taps, C', K') as `Blocks.matrices` has it, or (taps, K'), float32."""
    (few, many), taps = blocks.steps, len(tiles.taps[0, 0])
    if blocks.depthwise:
        kernel, block, whole = _depthwise_kernel, (taps, SUBLANES, blocks.k), (taps, SUBLANES, many * blocks.k)
        place = lambda k, c, n, u, v: (0, 0, k)  # noqa: E731
    else:
        kernel, block, whole = _kernel, (taps, blocks.k, blocks.c), (taps, many * blocks.k, few * blocks.c)
        place = lambda k, c, n, u, v: (0, k, c)  # noqa: E731
    dw = call(
        functools.partial(kernel, tiles),
        "convolution_weight_gradient",
        [tiles.enter(blocks.pad(x), True), tiles.enter(blocks.pad(dy, outputs=True), False)],
        (many, few, *tiles.steps),
        [
            tiles.spec(blocks.c, True, lambda k, c, n, u, v: (n, u, v, blocks.seen(k, c))),
            tiles.spec(blocks.k, False, lambda k, c, n, u, v: (n, u, v, k)),
        ],
        pl.BlockSpec(block, place),
        whole,
        jnp.float32,
        [],
        parallel=2,
    )
    return dw.sum(1) if blocks.depthwise else dw.swapaxes(1, 2)


def _kernel(tiles, x_ref, dy_ref, dw_ref):
    _start(dw_ref)

    def chunk(i):
        dy = tiles.view(dy_ref, i).T  # (K, rows)
        for t, *tap in tiles.taps[0, 0]:
            dw_ref[t] += dot(dy, tiles.view(x_ref, i, *tap))

    tiles.chunks(chunk)


def _depthwise_kernel(tiles, x_ref, dy_ref, dw_ref):
    """As many partial sums a channel as lie in a register."""
    _start(dw_ref)

    def chunk(i):
        dy = tiles.view(dy_ref, i).astype(jnp.float32)
        for t, *tap in tiles.taps[0, 0]:
            products = tiles.view(x_ref, i, *tap).astype(jnp.float32) * dy
            dw_ref[t] += products.reshape(-1, SUBLANES, products.shape[1]).sum(0)

    tiles.chunks(chunk)


def _start(ref):
    @pl.when((pl.program_id(2) == 0) & (pl.program_id(3) == 0) & (pl.program_id(4) == 0))
    def start():
        ref[...] = jnp.zeros_like(ref)
