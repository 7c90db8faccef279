"""Convolution for Hopper GPUs: wgmma fed by TMA, which reads a box of pixels of the images as they are for each tap."""

import math

import jax
import jax.numpy as jnp

from kernels import target
from kernels.attention.hopper import HOPPER
from kernels.convolution.epilogue import Epilogue
from kernels.convolution.hopper import boxes, channelwise, depthwise, product, weights
from kernels.convolution.hopper import channels as channel
from kernels.convolution.windows import DTYPES, Geometry, Pair, taps

__all__ = ["forward", "input_gradient", "refuses", "weight_gradient"]

NARROW = 16  # channels: with no more than these, taps become channels, in global memory
WIDE = 64  # taps and channels: with no more than these, taps of all rows do, else of one
NOTHING = Epilogue()
POINT = Geometry((1, 1), ((0, 0), (0, 0)))


def refuses(geometry: Geometry, x, w) -> str | None:
    """Other GPUs, other dtypes, depthwise kernels of which shared memory has no room for what a few outputs see,
    or with wide strides."""
    platform, kind = target.device()
    if target.interpreter() is None and not any(name in kind for name in HOPPER):
        return f"runs on {', '.join(HOPPER)}, and this is {kind}"
    if x.dtype not in DTYPES:
        return f"has no {x.dtype}"
    if _depthwise(geometry, w.shape):
        sizes, dtype = (x.shape[0], *geometry.output(x.shape[1:3], w.shape[:2])), jnp.dtype(jnp.float32)
        many = math.prod(geometry.strides) > channelwise.PHASES
        if many or not depthwise.fits(boxes.walks(geometry, w.shape[:2]), sizes, w.shape[3], dtype):
            return f"has no depthwise kernels of {w.shape[0]} x {w.shape[1]} with {geometry}"
    return None


def forward(geometry: Geometry, x: jax.Array, w: jax.Array, follow: Epilogue = NOTHING) -> jax.Array:
    """y = activation((x * w + bias) scale + shift + residual), (N, H', W', K) of x's dtype, from sums in float32."""
    size = geometry.output(x.shape[1:3], w.shape[:2])
    if _depthwise(geometry, w.shape):
        x = jnp.repeat(x, w.shape[3] // geometry.groups, axis=3)
        more = *_affine(follow), follow.residual, follow.activation
        walks = boxes.walks(geometry, w.shape[:2])
        return depthwise.correlate("convolution_depthwise", boxes.whole(walks), walks, size, x, w[:, :, 0], *more)
    x, geometry, kernel = _fold(geometry, x, w.shape[:2])
    w = w.reshape(*kernel, -1, w.shape[3])
    return _product("convolution_forward", boxes.walks(geometry, kernel), geometry.groups, x, w, size, follow)


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    """dx (N, *size, C) of dy (N, H', W', K): for each phase of the stride, a convolution with its taps, transposed."""
    groups, kernel = geometry.groups, w.shape[:2]
    if _depthwise(geometry, w.shape):
        wide = dy.astype(jnp.float32) if w.shape[3] > groups else dy  # whose sums over the multiplier are rounded once
        parts, name = boxes.phases(geometry, w.shape[:2]), "convolution_depthwise_input_gradient"
        dx = depthwise.correlate(name, parts, boxes.hull(parts), size, wide, w[:, :, 0], strides=geometry.strides)
        return dx if w.shape[3] == groups else dx.reshape(*dx.shape[:3], groups, -1).sum(4).astype(dy.dtype)
    w = w.reshape(*w.shape[:3], groups, -1)  # (kh, kw, C/G, G, K/G)
    w = w.transpose(0, 1, 4, 3, 2).reshape(*w.shape[:2], w.shape[4], -1)  # (kh, kw, K/G, C)
    extent = boxes.extent(geometry, size)

    def phase(part):
        if not part.taps:
            return jnp.zeros((dy.shape[0], *extent, w.shape[3]), dy.dtype)
        own = w[part.rows, part.columns]
        return _product("convolution_input_gradient", part.walks, groups, dy, own, extent, NOTHING)

    found = {at: phase(part) for at, part in boxes.phases(geometry, kernel).items()}
    (sh, sw), (height, width) = geometry.strides, extent
    dx = jnp.stack([jnp.stack([found[u, v] for v in range(sw)], 3) for u in range(sh)], 2)  # (N, H/s, s, W/s, s, C)
    return dx.reshape(dy.shape[0], height * sh, width * sw, -1)[:, : size[0], : size[1]]


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    """dw (*kernel, C / groups, K) of x (N, H, W, C) and dy (N, H', W', K), summed in float32, always in one order."""
    groups, dtype = geometry.groups, x.dtype
    shape = (*kernel, x.shape[3] // groups, dy.shape[3])
    if _depthwise(geometry, shape):
        x = jnp.repeat(x, dy.shape[3] // groups, axis=3)
        return depthwise.weight_gradient(boxes.walks(geometry, kernel), x, dy)[:, :, None].astype(dtype)
    x, geometry, kernel = _fold(geometry, x, kernel)
    channels, features = x.shape[3] // groups, dy.shape[3] // groups
    walks = boxes.walks(geometry, kernel)
    if _pointwise(walks) and x.shape[1:3] == dy.shape[1:3]:
        x, dy = (a.reshape(1, 1, -1, a.shape[3]) for a in (x, dy))
    inner, outer = (-(-n // 64) * 64 for n in (channels, features))
    plan = weights.planned(walks, dy.shape[:3], groups, inner, outer, channel.count(dtype))
    x = channel.spread(x, groups, -(-channels // 8) * 8 if _last(groups, walks) else inner)
    dy = channel.spread(dy, groups, -(-features // 8) * 8 if groups == 1 else outer)
    dw = weights.run(plan, [boxes.view(part, walks) for part in channel.split(x)], channel.split(dy))
    dw = dw[:, :, :channels, :features]  # (G, taps, C/G, K/G)
    return dw.transpose(1, 2, 0, 3).reshape(shape).astype(dtype)


def _depthwise(geometry, kernel):
    return geometry.groups > 1 and kernel[2] == 1


def _last(groups, walks):
    """Whether nothing follows the channels: TMA reads 0 there, but neither after a group nor a phase of the stride."""
    return groups == 1 and walks[1].stride == 1


def _product(name, walks, groups, x, w, size, follow):
    """The epilogue of sum_ij x[n, s p + a_i, s q + b_j] w[i, j]."""
    images, channels, features = x.shape[0], w.shape[2], w.shape[3] // groups
    residual, sizes = follow.residual, (images, *size)
    if _pointwise(walks) and x.shape[1:3] == size:  # all pixels are those of a row
        x, sizes = x.reshape(1, 1, -1, x.shape[3]), (1, 1, math.prod(sizes))
        residual = residual if residual is None else residual.reshape(1, 1, -1, residual.shape[3])
    inner, outer = channel.rounded(channels), -(-features // 64) * 64
    plan = product.planned(walks, sizes, groups, inner, outer, channel.count(x.dtype), follow.activation)
    x = channel.spread(x, groups, -(-channels // 8) * 8 if _last(groups, walks) else inner)
    width = -(-features // 8) * 8 if groups == 1 and target.interpreter() is None else outer
    w = w.reshape(-1, channels, groups, features).transpose(2, 0, 1, 3)  # (G, taps, C/G, K/G)
    w = jnp.pad(w, ((0, 0), (0, 0), (0, inner - channels), (0, outer - features))).reshape(-1, inner, outer)
    found = product.run(
        name,
        plan,
        [boxes.view(part, walks) for part in channel.split(x)],
        channel.split(w),
        *(None if v is None else channel.spread(v, groups, outer) for v in _affine(follow)),
        None if residual is None else channel.split(channel.spread(residual, groups, width)),
        groups * width,
    )
    return channel.gathered(channel.joined(found), groups, features).reshape(images, *size, -1)


def _pointwise(walks):
    return all((walk.count, walk.base, walk.stride) == (1, 0, 1) for walk in walks)


def _affine(follow):
    """(s + bias) scale + shift as s scale + offset."""
    bias, scale, shift = (None if v is None else v.astype(jnp.float32) for v in follow[:3])
    offset = bias if bias is None or scale is None else bias * scale
    return scale, shift if offset is None else offset if shift is None else offset + shift


def _fold(geometry, x, kernel):
    """With few channels, taps become channels, all of them or those of a row: x, the geometry and the kernel left."""
    (kh, kw), channels, ((_, sw), (rows, across), (_, dw), groups) = kernel, x.shape[3], geometry
    if groups > 1 or channels > NARROW or kernel == (1, 1):
        return x, geometry, kernel
    if kh * kw * channels <= WIDE:
        return jnp.concatenate([tap for _, tap in taps(x, kernel, geometry)], axis=3), POINT, (1, 1)  # (.., kh kw C)
    seen = taps(x, (1, kw), Geometry((1, sw), ((0, 0), across), (1, dw)))
    geometry = Geometry((geometry.strides[0], 1), (rows, (0, 0)), (geometry.dilation[0], 1))
    return jnp.concatenate([tap for _, tap in seen], axis=3), geometry, (kh, 1)  # (N, H, W', kw C)
