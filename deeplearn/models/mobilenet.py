"""MobileNet (Howard et al. 2017, MobileNets: efficient convolutional neural networks for mobile vision)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.layers import remat
from deeplearn.layers.convolution import Conv
from deeplearn.layers.normalization import BatchNorm
from kernels.pooling import global_average_pool

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))  # table 1


class Block(nn.Module):
    """A depthwise separable convolution (section 3.1): each channel's own 3 x 3, then a product of all channels.

    (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), channels), each followed by a normalization and relu.
    """

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inputs = x.shape[-1]
        x = Conv(inputs, (3, 3), self.stride, padding=1, groups=inputs, use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(BatchNorm(dtype=self.dtype)(x, train))
        x = Conv(self.channels, (1, 1), use_bias=False, dtype=self.dtype)(x)
        return nn.relu(BatchNorm(dtype=self.dtype)(x, train))


class MobileNet(nn.Module):
    """Images (B, H, W, C) to float32 logits (B, classes), at a 32nd of the resolution in the end.

    `width` multiplies all channels (section 3.3). There is a collection `batch_stats`.

    >>> init = MobileNet(classes=10).init_with_output
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 64, 64, 3)))
    >>> logits.shape
    (5, 10)
    """

    width: float = 1.0
    classes: int = 1000
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        wide = lambda channels: max(8, round(self.width * channels))  # noqa: E731
        x = Conv(wide(32), (3, 3), 2, padding=1, use_bias=False, dtype=self.dtype, name="stem")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="stem_norm")(x, train))
        block = remat.block(Block, self.remat)
        for i, (channels, stride) in enumerate(BLOCKS):
            x = block(wide(channels), stride, self.dtype, name=f"block_{i}")(x, train)
        x = global_average_pool(x)  # (B, 1024 width)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
