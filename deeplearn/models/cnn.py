"""The classic convolutional network: convolutions and pooling, then dense layers (LeCun et al. 1998, Gradient-based
learning applied to document recognition, section II), with 3 x 3 kernels (Simonyan and Zisserman 2015, section 2),
ReLU, and optionally batch norm (Ioffe and Szegedy 2015).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.layers import remat
from deeplearn.layers.convolution import Conv
from deeplearn.layers.dropout import Dropout
from deeplearn.layers.normalization import BatchNorm
from kernels.pooling import max_pool

# U(-1 / sqrt(n), 1 / sqrt(n)) for n inputs (Glorot and Bengio 2010, equation 1), PyTorch's default: a third of the
# variance of Flax's, with which the network is a little worse on MNIST.
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Block(nn.Module):
    """A 3 x 3 convolution, ReLU, 2 x 2 max pooling: (B, H, W, C) to (B, H // 2, W // 2, channels)."""

    channels: int
    batch_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.channels, (3, 3), use_bias=not self.batch_norm, dtype=self.dtype, kernel_init=UNIFORM)(x)
        if self.batch_norm:
            x = BatchNorm(dtype=self.dtype)(x, train)
        return max_pool(nn.relu(x), (2, 2))


class CNN(nn.Module):
    """Images (B, H, W, C) to float32 logits (B, classes): a block for each of `channels`, a hidden dense layer.

    Dropout acts on the inputs of both dense layers. With batch norm there is a collection `batch_stats`.

    >>> init = CNN().init_with_output  # the MNIST network
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 28, 28, 1)))
    >>> logits.shape
    (5, 10)
    """

    channels: Sequence[int] = (32, 64)
    hidden: int = 128
    classes: int = 10
    dropout: float = 0.0
    batch_norm: bool = False
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        dropout = Dropout(self.dropout, deterministic=not train)
        block = remat.block(Block, self.remat)
        for i, channels in enumerate(self.channels):
            x = block(channels, self.batch_norm, self.dtype, name=f"block_{i}")(x, train)
        x = x.reshape(len(x), -1)  # (B, H W C)
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=UNIFORM, name="hidden")(dropout(x)))
        return nn.Dense(self.classes, dtype=self.dtype, kernel_init=UNIFORM, name="head")(dropout(x)).astype(
            jnp.float32
        )
