"""Two-dimensional convolution of channels-last images, fast in every loop, gradient and `vmap`."""

import functools
from collections.abc import Sequence

import jax
from jax import lax

from kernels.convolution import reference, xla
from kernels.convolution.windows import DTYPES, Geometry, Padding
from kernels.convolution.windows import geometry as resolve


def convolution(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    implementation: str | None = None,
) -> jax.Array:
    """The convolution (cross-correlation) of images with a kernel, in groups of channels.

        y[n, p, q, k] = bias[k] + sum_ijc x[n, s p + d i - low, s q + d j - low, c] w[i, j, c, k]

    with stride s, dilation d and `low` zeros of padding before the first row and column, and H' = floor((H + low + high
    - d (kh - 1) - 1) / s) + 1 rows. Products are summed in float32. Derivatives of every order exist.

    Args:
      x: (N, H, W, C), float32 or bfloat16.
      w: (kh, kw, C / groups, K), of x's dtype.
      bias: (K,), of x's dtype, or None.
      strides: s, an int or a pair (height, width).
      padding: 'SAME' (ceil(H / s) rows, an odd zero last), 'VALID' (none), an int, or a (low, high) for each of height
        and width.
      dilation: d, an int or a pair.
      groups: output channels [g K/G, (g+1) K/G) see input channels [g C/G, (g+1) C/G) only; C is depthwise.
      implementation: 'reference' (the formula), 'xla' (the fast forms for a CPU), 'lax' (XLA's own convolution), or
        None: 'xla' where it is compiled for a CPU, 'lax' elsewhere.

    Returns:
      (N, H', W', K), of x's dtype.

    Raises:
      ValueError: shapes that don't fit each other, a window larger than the padded input, another dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> images, kernel = jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 32))
      >>> convolution(images, kernel, strides=2).shape
      (2, 14, 14, 32)

    Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning.
    """
    _check(x, w, bias, groups)
    geometry = resolve(x.shape[1:3], w.shape[:2], strides, padding, dilation, groups)
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be None or one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    y = _convolution(x, w, geometry, implementation)
    return y if bias is None else y + bias[None, None, None]


def _check(x, w, bias, groups):
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"x must be (N, H, W, C) and w (kh, kw, C / groups, K), not {x.shape} and {w.shape}")
    if groups < 1 or x.shape[3] != groups * w.shape[2] or w.shape[3] % groups:
        raise ValueError(f"groups {groups} doesn't divide the channels of x {x.shape} into those of w {w.shape}")
    if bias is not None and bias.shape != w.shape[3:]:
        raise ValueError(f"bias must be {w.shape[3:]} for w {w.shape}, not {bias.shape}")
    dtypes = [a.dtype.name for a in (x, w, bias) if a is not None]
    if x.dtype not in DTYPES or len(set(dtypes)) > 1:
        raise ValueError(f"x, w and bias must all be float32 or all bfloat16, not {', '.join(dtypes)}")


def _lax(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    strides, padding, dilation, groups = geometry
    return lax.conv_general_dilated(
        x,
        w,
        strides,
        padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


IMPLEMENTATIONS = {"reference": reference.convolution, "xla": xla.convolution, "lax": _lax}


@functools.partial(jax.jit, static_argnames=("geometry", "implementation"))
def _convolution(x, w, geometry, implementation):
    if implementation is not None:
        return IMPLEMENTATIONS[implementation](x, w, geometry)
    cpu, default = (functools.partial(f, geometry=geometry) for f in (xla.convolution, _lax))
    return lax.platform_dependent(x, w, cpu=cpu, default=default)
