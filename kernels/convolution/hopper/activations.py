"""The activations of an epilogue, in what a kernel can be made of; the GPU's own tanh is off by 2^-11."""

import math

import jax.numpy as jnp


def _sigmoid(y):
    return 1.0 / (1.0 + jnp.exp(-y))


def _tanh(y):
    return 1.0 - 2.0 / (1.0 + jnp.exp(2.0 * y))


ACTIVATIONS = {
    "relu": lambda y: jnp.maximum(y, 0.0),
    "relu6": lambda y: jnp.minimum(jnp.maximum(y, 0.0), 6.0),
    "gelu": lambda y: y * _sigmoid(math.sqrt(8 / math.pi) * (y + 0.044715 * y * y * y)),  # (1 + tanh(z)) / 2 at 2 z
    "silu": lambda y: y * _sigmoid(y),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "leaky_relu": lambda y: jnp.where(y >= 0.0, y, 0.01 * y),
}
