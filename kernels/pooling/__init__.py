"""Two-dimensional pooling without select-and-scatter.

XLA's gradient of a reduce-window maximum, select-and-scatter, is the slow part of small convolutional networks; here
both the value and the gradient are elementwise operations on the window's taps.

Ties: where several taps of a window share the maximum, its gradient is divided equally among them, in every
implementation.
"""

import jax
import jax.numpy as jnp

from kernels.convolution.geometry import Padding, geometry, pair
from kernels.pooling import reference, xla

IMPLEMENTATIONS = {"reference": reference, "xla": xla}


def max_pool(x, window, strides=None, padding: Padding = "VALID", implementation: str | None = None) -> jax.Array:
    """The maximum over each window: (N, H, W, C) to (N, H', W', C), of any float dtype.

    y[n, h, v, c] = max_ij x[n, s h + i - low, s v + j - low, c]; padding never is the maximum.

    Args:
      x: (N, H, W, C).
      window, strides: ints or pairs; strides are the window's size unless given.
      padding: "VALID", "SAME", an int or (low, high) pairs.
      implementation: "reference", "xla" or None, the fastest.

    Raises:
      ValueError: for arguments that do not fit together; names the argument and the shapes.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    return _implementation(implementation).max_pool(x, *_geometry(x, window, strides, padding))


def average_pool(x, window, strides=None, padding: Padding = "VALID", implementation: str | None = None) -> jax.Array:
    """The mean over each window, the zeros of the padding included; arguments as for `max_pool`.

    >>> average_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    return _implementation(implementation).average_pool(x, *_geometry(x, window, strides, padding))


def global_average_pool(x) -> jax.Array:
    """The mean over height and width: (N, H, W, C) to (N, C), added up in float32."""
    return x.mean(axis=(1, 2), dtype=jnp.float32).astype(x.dtype)


def _implementation(name):
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, not {name!r}")
    return IMPLEMENTATIONS[name or "xla"]


def _geometry(x, window, strides, padding):
    if x.ndim != 4:
        raise ValueError(f"x must be (N, H, W, C), not of shape {x.shape}")
    window = pair("window", window)
    resolved = geometry(x.shape[1:3], window, window if strides is None else strides, padding)
    return window, resolved.strides, resolved.padding
