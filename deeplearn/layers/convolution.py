"""Convolution and its transpose as layers, on kernels.convolution."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.convolution import convolution, convolution_transpose


class Conv(nn.Module):
    """A two-dimensional convolution of images, (N, H, W, C) to (N, H', W', features).

    Arguments are those of `kernels.convolution.convolution`; parameters have flax.linen.Conv's names, shapes and
    initial distribution (`kernel_init` replaces the kernel's): `kernel` (kh, kw, C / groups, features) and `bias`
    (features,), float32.

    >>> layer = Conv(32)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
    >>> layer.apply(variables, jnp.ones((5, 28, 28, 1))).shape
    (5, 28, 28, 32)
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: Any = "SAME"
    dilation: int | Sequence[int] = 1
    groups: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.groups < 1 or x.shape[-1] % self.groups:
            raise ValueError(f"groups {self.groups} doesn't divide the channels of x {x.shape}")
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        x, kernel, bias = _parameters(self, x, shape)
        sides = {"strides": self.strides, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return convolution(x, kernel, bias, **sides)


class ConvTranspose(nn.Module):
    """A two-dimensional transposed convolution, which spreads pixels: (N, H, W, C) to (N, H', W', features).

    Arguments are those of `kernels.convolution.convolution_transpose`, by which H' = strides H with 'SAME'; parameters
    have flax.linen.ConvTranspose's names, shapes and initial distribution, but as in PyTorch the kernel is not turned
    around.

    >>> layer = ConvTranspose(8, (4, 4), strides=2)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 7, 7, 16)))
    >>> layer.apply(variables, jnp.ones((5, 7, 7, 16))).shape
    (5, 14, 14, 8)
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: Any = "SAME"
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = _parameters(self, x, (*self.kernel_size, x.shape[-1], self.features))
        return convolution_transpose(x, kernel, bias, strides=self.strides, padding=self.padding)


def _parameters(layer, x, shape):
    """x, kernel and bias, of the dtype that the layer computes in."""
    kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
    zeros = nn.initializers.zeros_init()
    bias = layer.param("bias", zeros, (layer.features,), jnp.float32) if layer.use_bias else None
    return nn.dtypes.promote_dtype(x, kernel, bias, dtype=layer.dtype)
