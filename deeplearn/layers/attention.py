"""Multi-head self-attention (Vaswani et al. 2017, Attention is all you need, section 3.2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.errors import UserError
from deeplearn.layers.dense import Dense


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v in each head: (B, T, heads, D) thrice to the same shape.

    Weights are computed in float32 and divided by their sum after the product with v, which has fewer elements.

    >>> q = k = v = jnp.ones((2, 16, 4, 8))
    >>> attention(q, k, v).shape
    (2, 16, 4, 8)
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))  # (B, heads, T, T)
    total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]  # (B, T, heads, 1)
    x = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (x / total).astype(v.dtype)


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
