"""Convolution as a layer, on kernels.convolution."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.convolution import convolution


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
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        zeros = nn.initializers.zeros_init()
        bias = self.param("bias", zeros, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolution(
            x,
            kernel,
            bias,
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
