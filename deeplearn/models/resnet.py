"""The residual network for 32 x 32 images (He et al. 2015, Deep residual learning for image recognition, section
4.2).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.errors import UserError
from deeplearn.layers import remat
from deeplearn.layers.convolution import Conv
from deeplearn.layers.normalization import BatchNorm
from kernels.pooling import global_average_pool


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))): (B, H, W, C) to (B, H / stride, W / stride, channels).

    Where the shape changes, the shortcut takes every stride-th pixel and pads the channels with zeros, half on either
    side (the paper's option A): it has no parameters.
    """

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        # Padded by 1 on each side, a strided convolution is centred on the pixels that the shortcut takes.
        y = Conv(self.channels, (3, 3), self.stride, padding=1, use_bias=False, dtype=self.dtype)(x)
        y = nn.relu(BatchNorm(dtype=self.dtype)(y, train))
        y = Conv(self.channels, (3, 3), use_bias=False, dtype=self.dtype)(y)
        y = BatchNorm(dtype=self.dtype)(y, train)
        missing = self.channels - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images (B, H, W, C) to float32 logits (B, classes): depth = 6 n + 2 layers in three stages of n blocks.

    The stages have width, 2 width and 4 width channels, the later two at half and a quarter of the resolution. There is
    a collection `batch_stats`. Raises UserError for another depth.

    >>> init = ResNet(depth=20).init_with_output
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 32, 32, 3)))
    >>> logits.shape
    (5, 10)
    """

    depth: int = 20
    width: int = 16
    classes: int = 10
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        blocks, rest = divmod(self.depth - 2, 6)
        if rest or blocks < 1:
            raise UserError(f"a ResNet of depth {self.depth} cannot be built; choose one of 8, 14, 20, 32, 44, 56, 110")
        x = Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype, name="stem")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="stem_norm")(x, train))
        block = remat.block(Block, self.remat)
        for stage in range(3):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = block(self.width * 2**stage, stride, self.dtype, name=f"block_{stage}_{i}")(x, train)
        x = global_average_pool(x)  # (B, 4 width)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
