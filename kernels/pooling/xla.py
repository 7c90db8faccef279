"""Pooling for XLA: a reshape where windows tile the image, else shifted slices of it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x, window, strides, padding) -> jax.Array:
    if _tiles(x, window, strides, padding):
        return _blocks(x, window).max(axis=(2, 4))
    return _max_of_taps(jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf), window, strides)


def average_pool(x, window, strides, padding) -> jax.Array:
    if _tiles(x, window, strides, padding):
        return _blocks(x, window).mean(axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
    taps = _taps(jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32), window, strides)
    return (sum(taps) / len(taps)).astype(x.dtype)


def _tiles(x, window, strides, padding) -> bool:
    return window == strides and padding == ((0, 0), (0, 0))


def _blocks(x, window):
    """(N, H, W, C) to (N, H / kh, kh, W / kw, kw, C), without the rows and columns that fill no window."""
    (kh, kw), (n, h, w, c) = window, x.shape
    return x[:, : h // kh * kh, : w // kw * kw].reshape(n, h // kh, kh, w // kw, kw, c)


def _places(x, window, strides):
    """The slices (start, limit) of height and width that hold tap (i, j) of every window."""
    (kh, kw), (sh, sw) = window, strides
    height, width = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    for i in range(kh):
        for j in range(kw):
            yield (i, i + sh * (height - 1) + 1), (j, j + sw * (width - 1) + 1)


def _taps(x, window, strides):
    return [x[:, a : b : strides[0], c : d : strides[1]] for (a, b), (c, d) in _places(x, window, strides)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_of_taps(x, window, strides):
    """Autodiff of a chain of maxima would divide unequally among three equals or more: hence the rule below."""
    return functools.reduce(jnp.maximum, _taps(x, window, strides))


def _forward(x, window, strides):
    y = functools.reduce(jnp.maximum, _taps(x, window, strides))
    return y, (x, y)


def _backward(window, strides, residuals, dy):
    x, y = residuals
    hits = [(tap == y).astype(dy.dtype) for tap in _taps(x, window, strides)]
    share = dy / sum(hits)
    dx = jnp.zeros_like(x)
    for hit, ((a, b), (c, d)) in zip(hits, _places(x, window, strides), strict=True):
        zero = jnp.zeros((), dy.dtype)
        gaps = [(0, 0, 0), (a, x.shape[1] - b, strides[0] - 1), (c, x.shape[2] - d, strides[1] - 1), (0, 0, 0)]
        dx += lax.pad(hit * share, zero, gaps)
    return (dx,)


_max_of_taps.defvjp(_forward, _backward)
