"""Pooling of channels-last images, without XLA's slow select-and-scatter in the gradient."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernels.convolution.windows import DTYPES, Geometry, Padding, Pair, pair, wide
from kernels.convolution.windows import geometry as resolve
from kernels.pooling import backends


def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    implementation: str | None = None,
) -> jax.Array:
    """The maximum of each window, in each channel; padding is -inf.

        y[n, p, q, c] = max_ij x[n, s p + i - low, s q + j - low, c]

    Its gradient goes to the first maximum of a window, row by row, as in PyTorch and `lax.reduce_window`. A NaN is
    larger than any number, as there.

    Args:
      x: (N, H, W, C), float32 or bfloat16.
      window: an int or a pair (height, width).
      strides: an int or a pair; None is the window.
      padding: 'SAME', 'VALID', an int, or a (low, high) for each of height and width; smaller than the window.
      implementation: 'reference' (the formula), 'xla' (elementwise), 'tpu', 'hopper' (kernels, which
        reverse mode alone differentiates), or None: 'xla'.

    Returns:
      (N, H', W', C) with H' = floor((H + low + high - window) / s) + 1, of x's dtype.

    Raises:
      ValueError: a window larger than the padded input, padding as large as the window, another shape or dtype.
      NotImplementedError: the named implementation cannot do it, with the reason.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, ..., 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    window, geometry = _resolve(x, window, strides, padding, implementation)
    return backends.max_pool(backends.choose(x, window, geometry, implementation, "max"), x, window, geometry)


def average_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    implementation: str | None = None,
) -> jax.Array:
    """The mean of each window, in each channel, summed in float32; zeros of padding count, as in Flax and PyTorch.

        y[n, p, q, c] = sum_ij x[n, s p + i - low, s q + j - low, c] / (height width)

    Arguments, result and errors are those of `max_pool`.

    Example:
      >>> average_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, ..., 0]
      Array([[ 2.5,  4.5],
             [10.5, 12.5]], dtype=float32)
    """
    window, geometry = _resolve(x, window, strides, padding, implementation)
    name = backends.choose(x, window, geometry, implementation, "average")
    return backends.sum_pool(name, x, window, geometry, 1 / math.prod(window))


def sum_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    implementation: str | None = None,
) -> jax.Array:
    """The sum of each window, in each channel, in float32.

        y[n, p, q, c] = sum_ij x[n, s p + i - low, s q + j - low, c]

    Arguments, result and errors are those of `max_pool`.

    Example:
      >>> sum_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, ..., 0]
      Array([[10., 18.],
             [42., 50.]], dtype=float32)
    """
    window, geometry = _resolve(x, window, strides, padding, implementation)
    return backends.sum_pool(backends.choose(x, window, geometry, implementation, "average"), x, window, geometry, 1.0)


def global_max_pool(x: jax.Array) -> jax.Array:
    """The maximum over height and width: (N, H, W, C) -> (N, C). Its gradient goes to the first maximum.

    Example:
      >>> global_max_pool(jnp.arange(8.0).reshape(1, 2, 2, 2))
      Array([[6., 7.]], dtype=float32)
    """
    _check(x)
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
    return jnp.take_along_axis(flat, flat.argmax(1, keepdims=True), axis=1)[:, 0]


def global_sum_pool(x: jax.Array) -> jax.Array:
    """The sum over height and width, in float32: (N, H, W, C) -> (N, C).

    Example:
      >>> global_sum_pool(jnp.ones((1, 7, 7, 2)))
      Array([[49., 49.]], dtype=float32)
    """
    _check(x)
    return x.sum((1, 2), dtype=wide(x.dtype)).astype(x.dtype)


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over height and width, summed in float32: (N, H, W, C) -> (N, C).

    Lin et al. 2014, Network in network, section 3.2.

    Example:
      >>> global_average_pool(jnp.ones((2, 7, 7, 64))).shape
      (2, 64)
    """
    _check(x)
    return x.mean((1, 2), dtype=wide(x.dtype)).astype(x.dtype)


def _resolve(x, window, strides, padding, implementation) -> tuple[Pair, Geometry]:
    if implementation is not None and implementation not in backends.NAMES:
        raise ValueError(f"implementation must be None or one of {', '.join(backends.NAMES)}, not {implementation!r}")
    _check(x)
    window = pair("window", window)
    resolved = resolve(x.shape[1:3], window, window if strides is None else strides, padding)
    if any(max(sides) >= size for sides, size in zip(resolved.padding, window, strict=True)):
        raise ValueError(f"padding {resolved.padding} must be smaller than the window {window}")
    return window, resolved


def _check(x):
    if x.ndim != 4 or x.dtype not in (*DTYPES, jnp.float64):
        raise ValueError(f"x must be (N, H, W, C), float32 or bfloat16, not {x.shape}, {x.dtype}")
