"""Convolution of channels-last images, fast in every loop, gradient and `vmap`; transposed, depthwise, causal ones."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernels.convolution import backends, fused, partition
from kernels.convolution.epilogue import Epilogue
from kernels.convolution.windows import DTYPES, Padding, pair
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
    activation: str | None = None,
    residual: jax.Array | None = None,
    scale: jax.Array | None = None,
    shift: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """The convolution (cross-correlation) of images with a kernel, in groups of channels, and what follows it.

        s[n, p, q, k] = sum_ijc x[n, s p + d i - low, s q + d j - low, c] w[i, j, c, k]
        y = activation((s + bias) scale + shift + residual)

    with stride s, dilation d and `low` zeros of padding before the first row and column, and H' = floor((H + low + high
    - d (kh - 1) - 1) / s) + 1 rows. Sums, and what follows them, are float32, and rounded once. Derivatives of every
    order exist.

    Args:
      x: (N, H, W, C), float32 or bfloat16; float64 too, but for kernels.
      w: (kh, kw, C / groups, K), of x's dtype.
      bias, scale, shift: (K,), of x's dtype, or None; scale and shift may be a folded batch normalization.
      strides: s, an int or a pair (height, width).
      padding: 'SAME' (ceil(H / s) rows, an odd zero last), 'VALID' (none), an int, or a (low, high) for each of height
        and width.
      dilation: d, an int or a pair.
      groups: output channels [g K/G, (g+1) K/G) see input channels [g C/G, (g+1) C/G) only; C is depthwise.
      activation: 'relu', 'relu6', 'gelu' (by tanh), 'silu', 'tanh', 'sigmoid', 'leaky_relu' (0.01), or None.
      residual: (N, H', W', K), of x's dtype, or None.
      implementation: 'reference' (the formula), 'xla' (the fast forms for a CPU), 'lax' (XLA's own convolution), 'tpu',
        'hopper' (kernels), or None: by the stored measurement; without one 'xla' on a CPU and 'lax' elsewhere. 'lax'
        rounds the sums to x's dtype before what follows.

    Returns:
      (N, H', W', K), of x's dtype.

    Raises:
      ValueError: shapes that don't fit each other, a window larger than the padded input, another dtype.
      NotImplementedError: the implementation named can't do it, with the reason.

    Example:
      >>> import jax.numpy as jnp
      >>> images, kernel = jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 32))
      >>> convolution(images, kernel, strides=2, activation="relu").shape
      (2, 14, 14, 32)

    Dumoulin and Visin 2016, A guide to convolution arithmetic for deep learning.
    """
    _check(x, w, groups, implementation)
    geometry = resolve(x.shape[1:3], w.shape[:2], strides, padding, dilation, groups)
    follow = Epilogue(bias, scale, shift, residual, activation)
    follow.check(x.dtype, (x.shape[0], *geometry.output(x.shape[1:3], w.shape[:2]), w.shape[3]))
    name = backends.choose(geometry, x, w, implementation)
    run = functools.partial(fused.convolution, name, geometry)
    return partition.explicit(run, x, w, follow, groups)


def convolution_transpose(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
    residual: jax.Array | None = None,
    scale: jax.Array | None = None,
    shift: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """The transpose of a convolution, which spreads each input over a window of the output.

        s[n, s p + d i - low, s q + d j - low, k] = sum over such p, q, i, j, c of x[n, p, q, c] w[i, j, c, k]

    and what follows it, as in `convolution`, but that kernels too round the sums before. The output has H' = s H rows
    with 'SAME', else H' = s (H - 1) + d (kh - 1) + 1 - low - high, where the padding is cut off: as PyTorch has it. All
    else is as in `convolution`.

    Example:
      >>> import jax.numpy as jnp
      >>> convolution_transpose(jnp.ones((2, 7, 7, 8)), jnp.ones((4, 4, 8, 3)), strides=2).shape
      (2, 14, 14, 3)

    Zeiler et al. 2010, Deconvolutional networks; Dumoulin and Visin 2016, section 4.
    """
    _check(x, w, groups, implementation)
    size = tuple(
        n * s if padding == "SAME" else s * (n - 1) + d * (k - 1) + 1
        for n, k, s, d in zip(x.shape[1:3], w.shape, pair("strides", strides), pair("dilation", dilation), strict=False)
    )
    geometry = resolve(size, w.shape[:2], strides, padding, dilation, groups)
    if padding not in ("SAME", "VALID"):
        size = tuple(n - low - high for n, (low, high) in zip(size, geometry.padding, strict=True))
        if min(size) < 1:
            raise ValueError(f"padding {geometry.padding} leaves nothing of the {x.shape} that are spread by {w.shape}")
    follow = Epilogue(bias, scale, shift, residual, activation)
    shape = (x.shape[0], *size, w.shape[3])
    follow.check(x.dtype, shape)
    # Of the convolution that brings K channels back to C.
    back = w.reshape(*w.shape[:3], groups, -1).transpose(0, 1, 4, 3, 2).reshape(*w.shape[:2], -1, x.shape[3])
    name = backends.choose(geometry, jax.ShapeDtypeStruct(shape, x.dtype), back, implementation)
    run = lambda x, back, follow: fused.transposed(name, geometry, x, back, size, follow)  # noqa: E731
    return partition.explicit(run, x, back, follow, groups=2)  # whose last axis is not the output's


def depthwise_convolution(x: jax.Array, w: jax.Array, bias: jax.Array | None = None, **options) -> jax.Array:
    """Each channel's own convolution: w (kh, kw, C, M) gives M channels for each, (N, H', W', C M).

    Options are those of `convolution` but for groups.

    Example:
      >>> import jax.numpy as jnp
      >>> depthwise_convolution(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 2)), strides=2).shape
      (2, 4, 4, 6)

    Howard et al. 2017, MobileNets, section 3.1.
    """
    if w.ndim != 4 or x.ndim != 4 or w.shape[2] != x.shape[3]:
        raise ValueError(f"w must be (kh, kw, C, M) for x (N, H, W, C), not {w.shape} for {x.shape}")
    return convolution(x, w.reshape(*w.shape[:2], 1, -1), bias, groups=x.shape[3], **options)


def causal_convolution(
    x: jax.Array, w: jax.Array, bias: jax.Array | None = None, *, dilation: int = 1, groups: int = 1, **options
) -> jax.Array:
    """A convolution over time that sees the present and the past alone.

        s[n, t, k] = sum_ic x[n, t - d (kw - 1 - i), c] w[i, c, k]

    x: (N, T, C); w: (kw, C / groups, K); a residual is (N, T, K). Other options are those of `convolution` but for
    strides and padding. Returns (N, T, K).

    Example:
      >>> import jax.numpy as jnp
      >>> causal_convolution(jnp.ones((2, 16, 8)), jnp.ones((4, 1, 8)), groups=8).shape
      (2, 16, 8)

    van den Oord et al. 2016, WaveNet, section 2.1.
    """
    if x.ndim != 3 or w.ndim != 3:
        raise ValueError(f"x must be (N, T, C) and w (kw, C / groups, K), not {x.shape} and {w.shape}")
    if options.get("residual") is not None:
        options["residual"] = options["residual"][:, None]
    padding = ((0, 0), (pair("dilation", dilation)[1] * (w.shape[0] - 1), 0))
    y = convolution(x[:, None], w[None], bias, padding=padding, dilation=(1, dilation), groups=groups, **options)
    return y[:, 0]


def _check(x, w, groups, implementation):
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"x must be (N, H, W, C) and w (kh, kw, C / groups, K), not {x.shape} and {w.shape}")
    if 0 in w.shape[:2]:
        raise ValueError(f"w must have at least one row and one column, not {w.shape}")
    if groups < 1 or x.shape[3] != groups * w.shape[2] or w.shape[3] % groups:
        raise ValueError(f"groups {groups} doesn't divide the channels of x {x.shape} into those of w {w.shape}")
    if x.dtype not in (*DTYPES, jnp.float64) or w.dtype != x.dtype:
        dtypes = f"{x.dtype.name} {x.shape} and {w.dtype.name} {w.shape}"
        raise ValueError(f"x and w must both be float32 or both bfloat16, not {dtypes}")
    if implementation is not None and implementation not in backends.NAMES:
        raise ValueError(f"implementation must be None or one of {', '.join(backends.NAMES)}, not {implementation!r}")
