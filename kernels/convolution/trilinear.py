"""Dense convolution and its gradients as three bilinear primitives, each a convolution that XLA runs fast on a CPU.

With the inner product <dy, x * w> of an output's cotangent and a convolution, a form linear in x, w and dy:

    y  = x * w                  forward(x, w)
    dx = d<dy, x * w> / dx      input_gradient(dy, w)
    dw = d<dy, x * w> / dw      weight_gradient(x, dy)

Each is linear in both operands, and its two derivatives are the other two: so derivatives of every order, forward and
reverse, stay among the three. They are primitives because of what JAX makes of a convolution's gradient and of a `vmap`
over its weights. XLA hands a convolution to its matrix-product library (240 GFLOP/s on a Zen 5 core) if the input is
laid out (N, H, W, C), the kernel (kh, kw, C, K) and the output no larger than the input; JAX's gradients have other
layouts, up to 30 times slower inside a loop, and its `vmap` gives a grouped convolution, slower still.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels.convolution.windows import Geometry, Pair, Pairs

LAYOUT = ("NHWC", "HWIO", "NHWC")
CHUNK_BYTES = 1 << 19  # of x and dy together: while contracted, they stay in a core's second-level cache
COLUMNS = 512  # with fewer columns in a row, XLA's matrix-product library leaves them to one core
NARROW = 16  # with no more channels than this on either side, XLA doesn't use its matrix-product library


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
    columns are C apart. In its row d i and its column (d j, c) it has dw[i, j, c].
    """
    images, channels, features = x.shape[0], x.shape[3], dy.shape[3]
    rows, columns = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    used = [  # of x's height and width
        s * (m - 1) + n - low
        for s, m, n, (low, _) in zip(strides, dy.shape[1:3], (rows, columns), padding, strict=True)
    ]
    sides = [(low, max(u - n, 0)) for (low, _), u, n in zip(padding, used, x.shape[1:3], strict=True)]
    sides[1] = tuple(channels * p for p in sides[1])

    def contract(x, dy):
        x = x[:, : used[0], : used[1]].transpose(1, 2, 3, 0)  # (H, W, C, n)
        return lax.conv_general_dilated(
            x.reshape(1, x.shape[0], -1, x.shape[3]),  # (1, H, W C, n)
            dy.transpose(1, 2, 0, 3),  # (H', W', n, K)
            window_strides=(dilation[0], 1),
            padding=sides,
            rhs_dilation=(strides[0], channels * strides[1]),
            dimension_numbers=LAYOUT,
        )  # (1, kh, columns C, K)

    fit = max(CHUNK_BYTES * images // (4 * (x.size + dy.size)), 1 if features > NARROW else 2 * NARROW)
    chunk = min(images, 1 << (fit.bit_length() - 1))
    rest = images % chunk

    def add(i, dw):
        # Images i, i + G, i + 2 G, ...: so every device of a divided batch has its part of every chunk.
        groups = (a[: images - rest].reshape(chunk, -1, *a.shape[1:]) for a in (x, dy))  # (n, G, ...)
        return dw + contract(*(lax.dynamic_index_in_dim(a, i, axis=1, keepdims=False) for a in groups))

    dw = lax.fori_loop(0, images // chunk, add, jnp.zeros((1, kernel[0], columns * channels, features), x.dtype))
    if rest:
        dw = dw + contract(x[-rest:], dy[-rest:])
    return dw.reshape(kernel[0], columns, channels, features)[:, :: dilation[1]]


def _primitive(implementation, shape):
    primitive = Primitive(f"convolution{implementation.__name__}")
    primitive.def_impl(jax.jit(implementation, static_argnames=inspect.getfullargspec(implementation).kwonlyargs))
    primitive.def_abstract_eval(lambda a, b, **static: jax.core.ShapedArray(shape(a.shape, b.shape, **static), a.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    return primitive


forward_p = _primitive(_forward, lambda x, w, **window: (x[0], *Geometry(**window).output(x[1:3], w[:2]), w[3]))
input_gradient_p = _primitive(_input_gradient, lambda dy, w, size, **window: (dy[0], *size, w[2]))
weight_gradient_p = _primitive(_weight_gradient, lambda x, dy, kernel, **window: (*kernel, x[3], dy[3]))


def forward(x, w, **window):
    return forward_p.bind(x, w, **window)


def input_gradient(dy, w, x_shape, **window):
    return input_gradient_p.bind(dy, w, size=x_shape[1:3], **window)


def weight_gradient(x, dy, w_shape, **window):
    return weight_gradient_p.bind(x, dy, kernel=w_shape[:2], **window)


# A transposition rule gets the result's cotangent, then the operands; the one asked for is known by its `aval` only.
ad.defbilinear(
    forward_p,
    lambda dy, x, w, **window: input_gradient(dy, w, x.aval.shape, **window),
    lambda dy, x, w, **window: weight_gradient(x, dy, w.aval.shape, **window),
)
ad.defbilinear(
    input_gradient_p,
    lambda dx, dy, w, size, **window: forward(dx, w, **window),
    lambda dx, dy, w, size, **window: weight_gradient(dx, dy, w.aval.shape, **window),
)
ad.defbilinear(
    weight_gradient_p,
    lambda dw, x, dy, kernel, **window: input_gradient(dy, dw, x.aval.shape, **window),
    lambda dw, x, dy, kernel, **window: forward(x, dw, **window),
)


def _batch(primitive, operands, axes, **static):
    """More images where only they are batched; else one fast convolution after the other."""
    if primitive is not weight_gradient_p and axes[1] is None:
        images = jnp.moveaxis(operands[0], axes[0], 0)
        y = primitive.bind(images.reshape(-1, *images.shape[2:]), operands[1], **static)
        return y.reshape(*images.shape[:2], *y.shape[1:]), 0
    mapped = {i: jnp.moveaxis(operands[i], axis, 0) for i, axis in enumerate(axes) if axis is not None}
    return lax.map(lambda m: primitive.bind(*(m.get(i, operands[i]) for i in range(2)), **static), mapped), 0


for _p in (forward_p, input_gradient_p, weight_gradient_p):
    batching.primitive_batchers[_p] = functools.partial(_batch, _p)
