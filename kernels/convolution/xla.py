"""Convolution for a CPU, written in the one form that XLA runs fast there.

XLA gives a convolution to its matrix-product library (YNNPACK in jax 0.10 and 0.11) if the input is (N, H, W, C), the
kernel (kh, kw, C, K), neither is reversed, the input isn't dilated, there is padding, and the output is no larger than
the input. Then it reaches the speed of a plain matrix product, 240 GFLOP/s on one Zen 5 core. In any other form, and so
in the gradients that JAX derives, it is 2 to 30 times slower, worst inside a loop. So here every convolution is brought
to stride 1 and one group, and what is left is one bilinear map with two derivatives, each again in the fast form:

    y  = same(x, w)                              # as many rows and columns as x has
    dx = same(dy, w reversed in height and width, its C and K exchanged)
    dw = correlate(x, dy)                        # the images' rows and columns contracted
"""

import functools
import inspect

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels.convolution.geometry import Geometry, Pair

LAYOUT = ("NHWC", "HWIO", "NHWC")
CHUNK_BYTES = 1 << 19  # of x and dy together: they stay in a core's second-level cache while they are contracted
NARROW = 16  # a convolution of no more channels than this on either side doesn't reach the matrix-product library


def convolution(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """See `kernels.convolution.convolution`."""
    compute = _grouped if geometry.groups > 1 else _strided
    return compute(x.astype(jnp.float32), w.astype(jnp.float32), geometry).astype(x.dtype)


def _grouped(x, w, geometry):
    """One convolution a group; with one channel a group, a sum of shifted products."""
    kh, kw, channels, features = w.shape
    groups = geometry.groups
    if channels == 1:
        return _depthwise(x, w, geometry)
    x = x.reshape(*x.shape[:3], groups, channels)  # (N, H, W, G, C/G)
    w = w.reshape(kh, kw, channels, groups, features // groups)  # (kh, kw, C/G, G, K/G)
    per_group = functools.partial(_strided, geometry=geometry._replace(groups=1))
    y = jax.vmap(per_group, in_axes=3, out_axes=3)(x, w)  # (N, H, W, G, K/G)
    return y.reshape(*y.shape[:3], features)


def _depthwise(x, w, geometry):
    (sh, sw), padding, (dh, dw), groups = geometry
    kh, kw, _, features = w.shape
    height, width = geometry.output(x.shape[1:3], (kh, kw))
    x = jnp.pad(jnp.repeat(x, features // groups, axis=3), ((0, 0), *padding, (0, 0)))
    return sum(
        x[:, dh * i : dh * i + sh * (height - 1) + 1 : sh, dw * j : dw * j + sw * (width - 1) + 1 : sw]
        * w[i, j][None, None]
        for i in range(kh)
        for j in range(kw)
    )


def _strided(x, w, geometry):
    """A stride becomes channels: blocks of s x s pixels, convolved with stride 1 by a kernel of such blocks."""
    strides, padding, dilation, _ = geometry
    (sh, sw), size, kernel = strides, x.shape[1:3], w.shape[:2]
    height, width = geometry.output(size, kernel)
    if strides == (1, 1):
        return _dense(x, w, padding, dilation)
    if kernel == (1, 1) or dilation != (1, 1):
        if kernel == (1, 1) and padding == ((0, 0), (0, 0)):
            return _dense(x[:, ::sh, ::sw], w, padding, dilation)
        return _dense(x, w, padding, dilation)[:, ::sh, ::sw]
    low = tuple(-(-p // s) for (p, _), s in zip(padding, strides, strict=True))  # blocks of padding
    front = tuple(n * s - p for n, s, (p, _) in zip(low, strides, padding, strict=True))
    blocks = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    taps = tuple(-(-(f + k) // s) for f, k, s in zip(front, kernel, strides, strict=True))
    high = tuple(o - 1 + t - p - b for o, t, p, b in zip((height, width), taps, low, blocks, strict=True))
    x = jnp.pad(x, ((0, 0), *((0, b * s - n) for b, s, n in zip(blocks, strides, size, strict=True)), (0, 0)))
    w = jnp.pad(w, (*((f, t * s - f - k) for f, t, s, k in zip(front, taps, strides, kernel, strict=True)), (0, 0), (0, 0)))
    w = jnp.moveaxis(_blocks(jnp.moveaxis(w, 3, 0), strides), 0, 3)
    return _dense(_blocks(x, strides), w, tuple(zip(low, high, strict=True)), (1, 1))


def _blocks(x, strides):
    """(N, H, W, C) -> (N, H/s, W/s, s s C)."""
    n, height, width, channels = x.shape
    sh, sw = strides
    return jnp.concatenate([x[:, i::sh].reshape(n, height // sh, width // sw, sw * channels) for i in range(sh)], axis=3)


def _dense(x, w, padding, dilation):
    """Stride 1: brought to an output of the input's size, then cut to the rows and columns that are asked for."""
    size, kernel = x.shape[1:3], w.shape[:2]
    height, width = Geometry((1, 1), padding, dilation).output(size, kernel)
    if kernel == (1, 1) and (height, width) == size:
        return lax.dot_general(x, w[0, 0], (((3,), (0,)), ((), ())))
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    before = tuple(max(low - r, 0) for (low, _), r in zip(padding, reach, strict=True))
    after = tuple(max(low - b + high - r, 0) for (low, high), b, r in zip(padding, before, reach, strict=True))
    x = jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))
    low = tuple(low - b for (low, _), b in zip(padding, before, strict=True))
    return _same(x, w, low=low, dilation=dilation)[:, :height, :width]


def _reach(kernel, dilation):
    return tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))


def _same_impl(x, w, *, low: Pair, dilation: Pair):
    """x (N, H, W, C), w (kh, kw, C, K) -> y (N, H, W, K); `low` zeros come before each dimension, d (k-1) - low after."""
    padding = [(p, r - p) for p, r in zip(low, _reach(w.shape[:2], dilation), strict=True)]
    return lax.conv_general_dilated(x, w, (1, 1), padding, rhs_dilation=dilation, dimension_numbers=LAYOUT)


def _correlate_impl(x, dy, *, kernel: Pair, low: Pair, dilation: Pair):
    """x (N, H, W, C), dy (N, H, W, K) -> dw (kh, kw, C, K), summed over chunks of images that fit the cache.

    Within a chunk it is a convolution of the "image" (H, W C) with N channels by the kernel dy (H, W) of N channels, its
    columns C apart: what it gives at row i and column (j, c) is dw[i, j, c].
    """
    n, height, width, channels = x.shape
    features = dy.shape[3]
    padding = [(p, r - p) for p, r in zip(low, _reach(kernel, dilation), strict=True)]
    padding[1] = tuple(p * channels for p in padding[1])
    fit = max(1, CHUNK_BYTES // (4 * height * width * (channels + features)))
    chunk = min(n, max(1 << (fit.bit_length() - 1), 2 * NARROW if features <= NARROW else 1))

    def add(total, images):
        x, dy = images
        x = x.transpose(1, 2, 3, 0).reshape(1, height, width * channels, chunk)
        dy = dy.transpose(1, 2, 0, 3)  # (H, W, N, K)
        dw = lax.conv_general_dilated(
            x, dy, (dilation[0], 1), padding, rhs_dilation=(1, channels), dimension_numbers=LAYOUT
        )
        return total + dw, None

    chunks = lambda a: jnp.pad(a, ((0, -n % chunk), (0, 0), (0, 0), (0, 0))).reshape(-1, chunk, *a.shape[1:])
    columns = dilation[1] * (kernel[1] - 1) + 1
    start = jnp.zeros((1, kernel[0], columns * channels, features))
    dw, _ = lax.scan(add, start, (chunks(x), chunks(dy)))
    return dw.reshape(kernel[0], columns, channels, features)[:, :: dilation[1]]


def _primitive(name, implementation):
    primitive = Primitive(name)
    names = inspect.getfullargspec(implementation).kwonlyargs
    primitive.def_impl(jax.jit(implementation, static_argnames=names))
    def abstract(*avals, **params):
        out = jax.eval_shape(functools.partial(implementation, **params), *avals)
        return jax.core.ShapedArray(out.shape, out.dtype)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    return primitive


same_p = _primitive("convolution_same", _same_impl)
correlate_p = _primitive("convolution_correlate", _correlate_impl)


def _same(x, w, *, low, dilation):
    return same_p.bind(x, w, low=low, dilation=dilation)


def _correlate(x, dy, *, kernel, low, dilation):
    return correlate_p.bind(x, dy, kernel=kernel, low=low, dilation=dilation)


def _back(dy, w, low, dilation):
    low = tuple(r - p for r, p in zip(_reach(w.shape[:2], dilation), low, strict=True))
    return _same(dy, w[::-1, ::-1].swapaxes(2, 3), low=low, dilation=dilation)


ad.defbilinear(
    same_p,
    lambda dy, x, w, *, low, dilation: _back(dy, w, low, dilation),
    lambda dy, x, w, *, low, dilation: _correlate(x, dy, kernel=w.aval.shape[:2], low=low, dilation=dilation),
)
ad.defbilinear(
    correlate_p,
    lambda dw, x, dy, *, kernel, low, dilation: _back(dy, dw, low, dilation),
    lambda dw, x, dy, *, kernel, low, dilation: _same(x, dw, low=low, dilation=dilation),
)

def _rule(op, merge, args, dims, **params):
    (a, b), (da, db) = args, dims
    if merge and db is None:
        a = jnp.moveaxis(a, da, 0)
        y = op(a.reshape(-1, *a.shape[2:]), b, **params)
        return y.reshape(*a.shape[:2], *y.shape[1:]), 0
    if da is None:
        return lax.map(lambda b: op(a, b, **params), jnp.moveaxis(b, db, 0)), 0
    if db is None:
        return lax.map(lambda a: op(a, b, **params), jnp.moveaxis(a, da, 0)), 0
    return lax.map(lambda ab: op(*ab, **params), (jnp.moveaxis(a, da, 0), jnp.moveaxis(b, db, 0))), 0
batching.primitive_batchers[same_p]=functools.partial(_rule,_same,True)
batching.primitive_batchers[correlate_p]=functools.partial(_rule,_correlate,False)
