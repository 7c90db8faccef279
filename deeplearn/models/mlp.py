"""The multilayer perceptron (Rumelhart, Hinton and Williams 1986), with ReLU and dropout (Srivastava et al. 2014)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.layers import remat
from deeplearn.layers.dropout import Dropout


class Block(nn.Module):
    """dropout(relu(x W + b)): (B, D) to (B, features)."""

    features: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.Dense(self.features, dtype=self.dtype)(x))
        return Dropout(self.dropout)(x, deterministic=not train)


class MLP(nn.Module):
    """Inputs of any shape (B, ...) to float32 logits (B, classes), through a hidden layer for each of `features`.

    >>> init = MLP(features=(32,), classes=10).init_with_output
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((5, 8, 8, 1)))
    >>> logits.shape
    (5, 10)
    """

    features: Sequence[int] = (128, 128)
    classes: int = 10
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(len(x), -1)  # (B, D)
        block = remat.block(Block, self.remat)
        for i, features in enumerate(self.features):
            x = block(features, self.dropout, self.dtype, name=f"block_{i}")(x, train)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
