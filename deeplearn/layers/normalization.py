"""Batch normalisation (Ioffe and Szegedy 2015, section 3): Flax's, with a gradient written by hand."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float):
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, the moments over all axes of x but the last.

    x: (..., C), float32; scale, bias: (C,). Returns y, and mean and var (biased) of shape (C,), through which no
    gradient flows. With r = 1 / sqrt(var + epsilon), z = (x - mean) r and means <.> over the same axes,

        dx = scale r (dy - <dy> - z <dy z>),   dscale = sum dy z,   dbias = sum dy,

    fewer passes over memory on a CPU than autodiff makes.

    >>> y, mean, var = normalize(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), 0.0)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    # E x^2 - (E x)^2 has no correct digit left where the mean is a thousand standard deviations, so the moments are
    # those of x - shift. Any shift near the mean gives the same y. It has fewer bits than float32, because XLA computes
    # it again in each loop that uses it, and a multiply-add in one of them would keep digits that others round off.
    axes = tuple(range(x.ndim - 1))
    shift = lax.stop_gradient(lax.reduce_precision(x.mean(axes, keepdims=True), 8, 20))  # (1, ..., C)
    near = x - shift
    rest = near.mean(axes, keepdims=True)
    var = jnp.maximum(jnp.square(near).mean(axes, keepdims=True) - jnp.square(rest), 0)
    r = lax.rsqrt(var + epsilon)
    y = (near - rest) * (r * scale.reshape(r.shape)) + bias.reshape(r.shape)
    return (y, (shift + rest).reshape(-1), var.reshape(-1)), (x, scale, shift, rest, r)


def _backward(epsilon, saved, cotangents):
    x, scale, shift, rest, r = saved
    dy, _, _ = cotangents
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    centred = x - shift - rest
    d_bias = dy.sum(axes, keepdims=True)  # (1, ..., C)
    d_scale = (dy * centred).sum(axes, keepdims=True) * r
    dx = (scale.reshape(r.shape) * r) * (dy - d_bias / count - centred * (r * d_scale / count))
    return dx, d_scale.reshape(-1), d_bias.reshape(-1)


normalize.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """Normalise each channel of (..., C): by its batch's moments in training, by their running averages otherwise.

    Moments are float32. The parameters `scale` and `bias` and the collection `batch_stats` (`mean`, `var`) are those of
    `flax.linen.BatchNorm`; average <- momentum average + (1 - momentum) moment, of the biased variance.

    >>> layer, x = BatchNorm(), jnp.arange(4.0).reshape(4, 1)
    >>> variables = layer.init(jax.random.key(0), x, False)
    >>> y, updates = layer.apply(variables, x, True, mutable=["batch_stats"])
    >>> print(y.std().round(3), updates["batch_stats"]["mean"])
    1.0 [0.15]
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        average = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        spread = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            x, mean, var = normalize(x, scale, bias, self.epsilon)
            if not self.is_initializing():
                average.value = self.momentum * average.value + (1 - self.momentum) * mean
                spread.value = self.momentum * spread.value + (1 - self.momentum) * var
        else:
            shape = (1,) * (x.ndim - 1) + (channels,)
            factor = scale * lax.rsqrt(spread.value + self.epsilon)
            x = (x - average.value.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
        return x.astype(self.dtype)
