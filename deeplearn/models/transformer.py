"""The vision Transformer (Dosovitskiy et al. 2021, An image is worth 16x16 words, section 3.1): its pre-norm encoder
with learned positions, and the mean over the patches in place of the class token (Beyer et al. 2022, Better plain
ViT baselines).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.errors import UserError
from deeplearn.layers import remat
from deeplearn.layers.attention import SelfAttention
from deeplearn.layers.dense import Dense
from deeplearn.layers.dropout import Dropout


def _norm(x: jax.Array, name: str | None = None) -> jax.Array:
    """Layer normalisation, in float32, to the dtype of x; right at large means, where Flax's fast variance is not."""
    return nn.LayerNorm(use_fast_variance=False, name=name)(x.astype(jnp.float32)).astype(x.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, T, width) to the same shape."""

    heads: int
    mlp_ratio: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dropout = Dropout(self.dropout, deterministic=not train)
        width = x.shape[-1]
        y = _norm(x)
        x = x + dropout(SelfAttention(self.heads, self.dtype)(y))
        y = _norm(x)
        y = nn.gelu(Dense(round(self.mlp_ratio * width), dtype=self.dtype)(y))  # (B, T, mlp_ratio width)
        return x + dropout(Dense(width, dtype=self.dtype)(dropout(y)))


class VisionTransformer(nn.Module):
    """Images (B, H, W, C) to float32 logits (B, classes), by patches of `patch` x `patch` pixels.

    Raises UserError if the patches do not tile the image or the heads do not divide the width.

    >>> init = VisionTransformer(width=32, depth=2).init_with_output
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 32, 32, 3)))
    >>> logits.shape
    (5, 10)
    """

    patch: int = 4
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    classes: int = 10
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Dense(self.width, dtype=self.dtype, name="embedding")(patches(x, self.patch))  # (B, T, width)
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:], jnp.float32)
        x = Dropout(self.dropout)(x + positions.astype(self.dtype)[None], deterministic=not train)
        block = remat.block(Block, self.remat)
        for i in range(self.depth):
            x = block(self.heads, self.mlp_ratio, self.dropout, self.dtype, name=f"block_{i}")(x, train)
        x = _norm(x, "norm").mean(axis=1)  # (B, width)
        return Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)


def patches(x: jax.Array, size: int) -> jax.Array:
    """Cut images (B, H, W, C) into squares, row by row: (B, H W / size^2, size^2 C).

    >>> print(patches(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0])
    [[ 0  1  4  5]
     [ 2  3  6  7]
     [ 8  9 12 13]
     [10 11 14 15]]
    """
    batch, height, width, channels = x.shape
    if height % size or width % size:
        raise UserError(f"patches of {size} x {size} do not tile an image of {height} x {width}")
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)  # (B, T, size size C)
