"""The dense layer: Flax's, with a gradient that suits a CPU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplearn.layers.sharding import POSITIONS, parts


class Dense(nn.Module):
    """x W + b over the last axis: (..., D) to (..., features); fields and parameters as those of `flax.linen.Dense`.

    All other axes are flattened first: the gradient for W would otherwise sum over several, for which XLA on a CPU
    transposes the whole cotangent. That took a fifth of the time of a Transformer's step.

    >>> init = Dense(5).init_with_output
    >>> y, variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 3, 4)))
    >>> y.shape
    (2, 3, 5)
    """

    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        # Examples and positions that are both divided are not one axis that is divided.
        rows = x if parts(POSITIONS) > 1 else x.reshape(-1, x.shape[-1])  # (N, D)
        y = rows.astype(self.dtype) @ kernel.astype(self.dtype)  # (N, features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
            y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
        return y.reshape(*x.shape[:-1], self.features)
