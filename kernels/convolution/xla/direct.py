"""Dense convolution and its gradients, each as a convolution that XLA runs fast on a CPU.

XLA hands a convolution to its matrix-product library (240 GFLOP/s on a Zen 5 core) if the input is laid out
(N, H, W, C), the kernel (kh, kw, C, K) and the output no larger than the input; JAX's gradients have other layouts, up
to 30 times slower inside a loop.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels.convolution.windows import Geometry, Pair, Pairs
from kernels.meshes import varying

LAYOUT = ("NHWC", "HWIO", "NHWC")
CHUNK_BYTES = 1 << 19  # of x and dy together: while contracted, they stay in a core's second-level cache
COLUMNS = 512  # with fewer columns in a row, XLA's matrix-product library leaves them to one core
NARROW = 16  # with no more channels than this on either side, XLA doesn't use its matrix-product library


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    beyond, window = _within(geometry, w.shape[:2])
    height, width = geometry.output(x.shape[1:3], w.shape[:2])
    return _forward(jnp.pad(x, ((0, 0), *beyond, (0, 0))), w, **window)[:, :height, :width]


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    beyond, window = _within(geometry, w.shape[:2])
    whole = tuple(n + low + high for n, (low, high) in zip(size, beyond, strict=True))
    dx = _input_gradient(_uncut(dy, whole, w.shape[:2], window), w, size=whole, **window)
    return dx[:, beyond[0][0] :, beyond[1][0] :][:, : size[0], : size[1]]


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    beyond, window = _within(geometry, kernel)
    x = jnp.pad(x, ((0, 0), *beyond, (0, 0)))
    return _weight_gradient(x, _uncut(dy, x.shape[1:3], kernel, window), kernel=kernel, **window)


def _within(geometry, kernel):
    """The zeros that reach further than the window, which are made here, and what XLA is to do with the others.

    Without a stride these are as many as keep the input's size, and the output is cut: without any zeros XLA's library
    is eight times slower.
    """
    strides, padding, dilation, _ = geometry
    reach = geometry.reach(kernel)
    beyond = [tuple(max(p - r, 0) for p in side) for side, r in zip(padding, reach, strict=True)]
    within = [tuple(min(p, r) for p in side) for side, r in zip(padding, reach, strict=True)]
    if strides == (1, 1):
        within = [(low, max(high, r - low)) for (low, high), r in zip(within, reach, strict=True)]
    return beyond, {"strides": strides, "padding": tuple(within), "dilation": dilation}


def _uncut(dy, size, kernel, window):
    """With zeros for the outputs that `forward` cuts off."""
    sides = (n - m for n, m in zip(Geometry(**window).output(size, kernel), dy.shape[1:3], strict=True))
    return jnp.pad(dy, ((0, 0), *((0, side) for side in sides), (0, 0)))


def _forward(x, w, *, strides: Pair, padding: Pairs, dilation: Pair):
    """x (N, H, W, C), w (kh, kw, C, K) -> y (N, H', W', K), computed for g images side by side in each row.

    XLA's library divides nothing but the columns of a row among the cores: an image has too few of them. The images
    are P columns apart, with the padding between them; the transpositions are a choice of layout in memory to XLA.
    """
    images, height, width, channels = x.shape
    gap = max(padding[1])
    pitch = width + gap + -(width + gap) % strides[1]  # P
    rows, columns = Geometry(strides, padding, dilation).output((height, width), w.shape[:2])
    g = 1 if min(channels, w.shape[3]) <= NARROW else _divisor(images, -(-COLUMNS * strides[1] // pitch))
    if g > 1:
        x = x.reshape(-1, g, height, width, channels).swapaxes(1, 2)  # (N/g, H, g, W, C)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pitch - width), (0, 0)))
        x = x.reshape(images // g, height, g * pitch, channels)
        low, reach = padding[1][0], dilation[1] * (w.shape[1] - 1)
        padding = (padding[0], (low, max(reach + 1 - strides[1] - low, 0)))
    y = lax.conv_general_dilated(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT)
    if g > 1:
        y = y[:, :, : g * pitch // strides[1]].reshape(images // g, rows, g, -1, w.shape[3])  # (N/g, H', g, P/s, K)
        y = y[:, :, :, :columns].swapaxes(1, 2).reshape(images, rows, columns, -1)  # (N, H', W', K)
    return y


def _divisor(n: int, least: int) -> int:
    """The smallest divisor of n that is not less than `least`; n if there is none."""
    return next((d for d in range(least, n) if n % d == 0), n)


def _input_gradient(dy, w, *, size: Pair, strides: Pair, padding: Pairs, dilation: Pair):
    """dy (N, H', W', K), w (kh, kw, C, K) -> dx (N, *size, C): dy, spread by the stride, by the kernel reversed."""
    sides = [
        (d * (k - 1) - low, n + low - s * (m - 1) - 1)
        for n, m, k, s, (low, _), d in zip(size, dy.shape[1:3], w.shape, strides, padding, dilation, strict=False)
    ]
    w = w[::-1, ::-1].swapaxes(2, 3)  # (kh, kw, K, C)
    if strides == (1, 1):
        return _forward(dy, w, strides=strides, padding=tuple(sides), dilation=dilation)
    return lax.conv_general_dilated(
        dy, w, (1, 1), sides, lhs_dilation=strides, rhs_dilation=dilation, dimension_numbers=LAYOUT
    )


def _weight_gradient(x, dy, *, kernel: Pair, strides: Pair, padding: Pairs, dilation: Pair):
    """x (N, H, W, C), dy (N, H', W', K) -> dw (kh, kw, C, K), summed over chunks of images that fit the cache.

    A chunk of n images is one convolution: an "image" (H, W C) of n channels by a kernel (H', W') of n channels, whose
    columns are C apart. In its row d i and its column (j, c) it has dw[i, j, c]. Dilated, it is one for each j.
    """
    images, channels, features = x.shape[0], x.shape[3], dy.shape[3]
    rows, columns = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    used = [  # of x's height and width
        s * (m - 1) + n - low
        for s, m, n, (low, _) in zip(strides, dy.shape[1:3], (rows, columns), padding, strict=True)
    ]
    sides = [(low, max(u - n, 0)) for (low, _), u, n in zip(padding, used, x.shape[1:3], strict=True)]

    # Columns of the kernel that are neighbours make one convolution; those between the taps would be computed too.
    runs = [(0, columns)] if dilation[1] == 1 else [(dilation[1] * j, 1) for j in range(kernel[1])]

    def contract(x, dy):
        x = x[:, : used[0], : used[1]].transpose(1, 2, 3, 0)  # (H, W, C, n)
        x = x.reshape(1, x.shape[0], -1, x.shape[3])  # (1, H, W C, n)
        dy = dy.transpose(1, 2, 0, 3)  # (H', W', n, K)
        return jnp.concatenate([of_columns(x, dy, *run) for run in runs], axis=2)  # (1, kh, kw C, K)

    def of_columns(x, dy, first, count):
        low, width = first - padding[1][0], x.shape[2] // channels
        high = low + strides[1] * (dy.shape[1] - 1) + count
        if high <= 0 or low >= width:  # padding alone
            return jnp.zeros((1, kernel[0], count * channels, features), x.dtype)
        inside = x[:, :, channels * max(low, 0) : channels * high]
        return lax.conv_general_dilated(
            inside,
            dy,
            window_strides=(dilation[0], 1),
            padding=(sides[0], (channels * max(-low, 0), channels * max(high - width, 0))),
            rhs_dilation=(strides[0], channels * strides[1]),
            dimension_numbers=LAYOUT,
        )  # (1, kh, count C, K)

    fit = max(CHUNK_BYTES * images // (4 * (x.size + dy.size)), 1 if features > NARROW else 2 * NARROW)
    chunk = min(images, 1 << (fit.bit_length() - 1))
    rest = images % chunk

    def add(i, dw):
        # Images i, i + G, i + 2 G, ...: so every device of a divided batch has its part of every chunk.
        groups = (a[: images - rest].reshape(chunk, -1, *a.shape[1:]) for a in (x, dy))  # (n, G, ...)
        return dw + contract(*(lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False) for a in groups))

    dw, *_ = varying((jnp.zeros((1, kernel[0], kernel[1] * channels, features), x.dtype), x, dy))
    dw = lax.fori_loop(0, images // chunk, add, dw)
    if rest:
        dw = dw + contract(x[-rest:], dy[-rest:])
    return dw.reshape(*kernel, channels, features)
