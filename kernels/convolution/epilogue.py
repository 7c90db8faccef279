"""What is done to a convolution's sums before they are rounded: bias, folded normalization, residual, activation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.convolution.windows import wide

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": jax.nn.gelu,  # by tanh
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "leaky_relu": jax.nn.leaky_relu,  # 0.01 x below 0
}

# Their derivatives as functions of the value y, of those that have one.
SLOPES = {
    None: jnp.ones_like,
    "relu": lambda y: (y > 0).astype(y.dtype),
    "relu6": lambda y: ((y > 0) & (y < 6)).astype(y.dtype),
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
    "leaky_relu": lambda y: jnp.where(y >= 0, 1, 0.01).astype(y.dtype),
}


class Epilogue(NamedTuple):
    """y = activation((sums + bias) scale + shift + residual), in float32; what is None falls away.

    bias, scale, shift: (K,); residual: like the sums; activation: a name in ACTIVATIONS.
    """

    bias: jax.Array | None = None
    scale: jax.Array | None = None
    shift: jax.Array | None = None
    residual: jax.Array | None = None
    activation: str | None = None

    def __call__(self, sums: jax.Array) -> jax.Array:
        y = sums.astype(wide(sums.dtype))
        bias, scale, shift = (None if v is None else v.astype(y.dtype)[None, None, None] for v in self[:3])
        y = y if bias is None else y + bias
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift
        y = y if self.residual is None else y + self.residual.astype(y.dtype)
        return y if self.activation is None else ACTIVATIONS[self.activation](y)

    def check(self, dtype, shape: tuple[int, ...]) -> None:
        """Raises ValueError, which names the argument, if one does not fit results of this dtype and shape."""
        for name, value in self._asdict().items():
            wanted = shape if name == "residual" else shape[3:]
            if name != "activation" and value is not None and (value.shape != wanted or value.dtype != dtype):
                raise ValueError(f"{name} must be {dtype.name} {wanted}, not {value.dtype.name} {value.shape}")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
