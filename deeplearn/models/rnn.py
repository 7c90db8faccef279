"""Recurrent networks (Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014) that read a sequence and then
answer, or answer at every step: an image is read row by row (Le, Jaitly and Hinton 2015, section 4.2, reads it pixel by
pixel), a text token by token (Graves 2013, Generating sequences with recurrent neural networks, section 2).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.layers import remat
from deeplearn.layers.dense import Dense
from deeplearn.layers.dropout import Dropout
from deeplearn.layers.indices import in_range
from deeplearn.layers.recurrent import Recurrent


class Block(nn.Module):
    """dropout(recurrent layer): (B, T, D) to (B, T, features)."""

    features: int
    cell: str
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Recurrent(self.features, self.cell, self.dtype)(x)
        return Dropout(self.dropout)(x, deterministic=not train)


class SequenceRNN(nn.Module):
    """Sequences (B, T, D), or images (B, H, W, C) as H rows, to float32 outputs (B, outputs): logits or values.

    A dense layer reads the last hidden state. `cell` is rnn, lstm or gru; UserError for another.

    >>> init = SequenceRNN(features=32, cell="lstm", outputs=10).init_with_output
    >>> outputs, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 28, 28, 1)))
    >>> outputs.shape
    (5, 10)
    """

    features: int = 32
    cell: str = "rnn"
    outputs: int = 1
    layers: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(*x.shape[:2], -1)  # (B, T, D)
        block = remat.block(Block, self.remat)
        for i in range(self.layers):
            x = block(self.features, self.cell, self.dropout, self.dtype, name=f"block_{i}")(x, train)
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x[:, -1]).astype(jnp.float32)


class LanguageRNN(nn.Module):
    """Tokens (B, T), integers, to float32 logits of the token that follows each, (B, T, vocabulary).

    An embedding, `layers` recurrent layers from the state zero, and a dense layer. `cell` is rnn, lstm or gru;
    UserError for another. A token that does not exist gives NaN from its place on.

    >>> init = LanguageRNN(vocabulary=65).init_with_output
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 64), jnp.int32))
    >>> logits.shape
    (5, 64, 65)
    """

    vocabulary: int
    features: int = 128
    cell: str = "lstm"
    layers: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        embedding = nn.Embed(self.vocabulary, self.features, dtype=self.dtype, name="embedding")
        x = embedding(in_range(tokens, self.vocabulary))  # (B, T, features)
        block = remat.block(Block, self.remat)
        for i in range(self.layers):
            x = block(self.features, self.cell, self.dropout, self.dtype, name=f"block_{i}")(x, train)
        return Dense(self.vocabulary, dtype=self.dtype, name="head")(x).astype(jnp.float32)
