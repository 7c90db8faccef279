"""Depthwise convolution with large kernels as products of Fourier transforms (Mathieu et al. 2014, Fast training of
convolutional networks through FFTs).

With transforms X, W, Y of the padded images, the dilated kernel and the outputs, all of the padded images' size, and a
bar for the complex conjugate,

    Y = X conj(W),   dX = dY W,   dW = sum_n X conj(dY)

of which nothing wraps around. What is not finite spreads over its image and channel. Of images divided over devices XLA
gathers all: it divides no transform.
"""

import jax
import jax.numpy as jnp

from kernels.convolution.windows import Geometry, Pair, pad


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    x, size = _padded(geometry, x, w.shape[3]), geometry.output(x.shape[1:3], w.shape[:2])
    y = _back(_transform(x) * jnp.conj(_transform(_dilated(geometry, w), x.shape[1:3])), x)
    return y[:, : size[0], : size[1]]


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    whole = tuple(n + low + high for n, (low, high) in zip(size, geometry.padding, strict=True))
    dx = _back(_transform(dy, whole) * _transform(_dilated(geometry, w), whole), dy, whole)
    (top, _), (left, _) = geometry.padding
    dx = dx[:, top : top + size[0], left : left + size[1]]
    return dx.reshape(*dx.shape[:3], geometry.groups, -1).sum(4)


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    x = _padded(geometry, x, dy.shape[3])
    products = (_transform(x) * jnp.conj(_transform(dy, x.shape[1:3]))).sum(0, keepdims=True)
    (rows, columns), (down, across) = geometry.reach(kernel), geometry.dilation
    return _back(products, x)[0, : rows + 1 : down, : columns + 1 : across][:, :, None]  # (kh, kw, 1, K)


def _padded(geometry, x, features):
    return pad(jnp.repeat(x, features // geometry.groups, axis=3), geometry.padding)


def _dilated(geometry, w):
    """(1, d (kh - 1) + 1, d (kw - 1) + 1, K), with zeros between the taps."""
    between = [(0, 0, d - 1) for d in geometry.dilation]
    return jax.lax.pad(w[:, :, 0], jnp.zeros((), w.dtype), (*between, (0, 0, 0)))[None]


def _transform(x, size=None):
    return jnp.fft.rfft2(x, size or x.shape[1:3], axes=(1, 2))


def _back(transformed, like, size=None):
    return jnp.fft.irfft2(transformed, size or like.shape[1:3], axes=(1, 2)).astype(like.dtype)
