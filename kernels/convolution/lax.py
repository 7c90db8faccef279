"""XLA's own convolution, and its gradients as JAX writes them."""

import jax
from jax import lax

from kernels.convolution.windows import Geometry, Pair

LAYOUT = ("NHWC", "HWIO", "NHWC")


def refuses(geometry: Geometry, x: jax.Array, w: jax.Array) -> None:
    """Nothing."""


def forward(geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    strides, padding, dilation, groups = geometry
    return lax.conv_general_dilated(
        x, w, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=LAYOUT
    )


def input_gradient(geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    x = jax.ShapeDtypeStruct((dy.shape[0], *size, w.shape[2] * geometry.groups), dy.dtype)
    return jax.linear_transpose(lambda x: forward(geometry, x, w), x)(dy)[0]


def weight_gradient(geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    w = jax.ShapeDtypeStruct((*kernel, x.shape[3] // geometry.groups, dy.shape[3]), x.dtype)
    return jax.linear_transpose(lambda w: forward(geometry, x, w), w)(dy)[0]
