"""Multi-head self-attention (Vaswani et al. 2017, Attention is all you need, section 3.2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.errors import UserError
from deeplearn.layers.dense import Dense
from kernels.attention import attention


class SelfAttention(nn.Module):
    """Attention of each position to all, in `heads` heads of D = width / heads: (B, T, width) to the same shape.

    Queries, keys and values come from one dense layer. Raises UserError if the heads do not divide the width.

    >>> init = SelfAttention(heads=4).init_with_output
    >>> y, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 16, 32)))
    >>> y.shape
    (2, 16, 32)
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, time, width = x.shape
        if width % self.heads:
            raise UserError(f"{self.heads} heads do not divide the width, {width}; choose a multiple of them")
        qkv = jnp.split(Dense(3 * width, dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        x = attention(*(part.reshape(batch, time, self.heads, -1) for part in qkv))  # (B, T, heads, D)
        return Dense(width, dtype=self.dtype, name="out")(x.reshape(batch, time, width))
