"""Attention as models call it, on one device or a mesh; multi-head self-attention (Vaswani et al. 2017, Attention is
all you need, section 3.2).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from deeplearn.errors import UserError
from deeplearn.layers.dense import Dense
from deeplearn.layers.sharding import EXAMPLES, HEADS, POSITIONS, check_positions, parts
from kernels import attention as kernels


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """`kernels.attention.attention`, on a mesh of several devices each for its own examples, heads and positions.

    Examples are divided over data x fsdp, positions over sequence, where keys and values go round a ring, and heads
    over tensor, if it divides those of the keys too or there is one alone. By `jax.shard_map`: XLA itself divides no
    kernel for a TPU. What is dropped is the same on every mesh.

    Args: query (B, T, N, D), key and value (B, S, K, D), bias and mask of four axes; see there.

    Returns (B, T, N, D). Raises UserError for positions that sequence does not divide, and for what the ring has not: a
    bias, a mask, dropout.

    >>> q = k = v = jnp.ones((2, 16, 4, 8))
    >>> attention(q, k, v, is_causal=True).shape
    (2, 16, 4, 8)
    """
    mesh = jax.sharding.get_abstract_mesh()
    call = partial(kernels.attention, dropout_rate=dropout_rate)
    arrays = {"bias": bias, "mask": mask, "dropout_rng": dropout_rng}
    arrays = {name: x for name, x in arrays.items() if x is not None}
    if mesh.size <= 1 or set(mesh.axis_types) != {AxisType.Auto}:
        return call(query, key, value, is_causal=is_causal, **arrays)

    (batch, time, heads, _), groups = query.shape, key.shape[2]
    if parts(POSITIONS) > 1:
        check_positions(time)
        _check_ring(bias, mask, dropout_rate)
        call = partial(kernels.ring_attention, axis_name=POSITIONS)
    example = EXAMPLES if batch % parts(*EXAMPLES) == 0 else None  # one example alone, as where parameters are drawn
    head = HEADS if (heads if groups == 1 else groups) % parts(HEADS) == 0 else None
    if dropout_rate:
        arrays["dropout_heads"] = jnp.arange(batch * heads, dtype=jnp.int32).reshape(batch, heads)

    def divided(x):
        """Of what is (B or 1, N or 1, ...)."""
        return PartitionSpec(*(axis if n > 1 else None for axis, n in zip((example, head), x.shape, strict=False)))

    queries, keys = (PartitionSpec(example, POSITIONS, head if n > 1 else None) for n in (heads, groups))
    return jax.shard_map(
        lambda query, key, value, arrays: call(query, key, value, is_causal=is_causal, **arrays),
        in_specs=(queries, keys, keys, jax.tree.map(divided, arrays)),
        out_specs=queries,
    )(query, key, value, arrays)


def _check_ring(bias, mask, dropout_rate):
    """Raises UserError for what ring attention has not."""
    for asked, name, remedy in (
        (dropout_rate > 0, "dropout", "set it to 0"),
        (bias is not None, "a bias, as alibi is", "choose learned or rotary positions"),
        (mask is not None, "a mask", "give none"),
    ):
        if asked:
            raise UserError(f"attention over sequence has no place for {name}: {remedy}, or leave sequence out")


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
