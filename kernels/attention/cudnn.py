"""Attention by cuDNN, through jax.nn.dot_product_attention: what it does as this package promises, and no more."""

import functools

import jax
import jax.numpy as jnp

from kernels.attention.request import Arrays, Request

IMPLEMENTATION = "cudnn"


def refuses(request: Request, arrays: Arrays) -> str | None:
    """What cuDNN lacks, or does otherwise than `kernels.attention.attention` says."""
    query, key, _, bias, mask, *_ = arrays
    (batch, length, heads, depth), span = query.shape, key.shape[1]
    low, high = request.band
    reasons = {
        f"takes float16 and bfloat16, not {query.dtype.name}": query.dtype not in (jnp.float16, jnp.bfloat16),
        f"takes head dims that are multiples of 8 up to 256, not {depth}": depth % 8 or depth > 256,
        "has no soft cap": request.soft_cap is not None,
        "has no segments": mask.query_segments is not None,
        "has windows only to the left of a causal mask": high not in (None, 0) or (low is not None and high is None),
        "gives rows outside of every window a value": low is not None and length > span - low,
        "gives rows that a mask leaves nothing a value": mask.dense is not None,
        "draws dropout from numbers of its own": bool(request.dropout_rate),
        "has no gradient of the log-sum-exp": request.residual,
        f"has a bias's gradient for one example alone, of shape {(1, heads, length, span)}": bias is not None
        and bias.shape != (1, heads, length, span)
        or bias is not None
        and batch > 1,
        "takes a bias for even numbers of queries and keys": bias is not None and (length % 2 or span % 2),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@functools.cache
def installed() -> bool:
    """Whether JAX finds cuDNN, as it does not where it compiles for a GPU that is not here."""
    from jax._src.cudnn.fused_attention_stablehlo import check_cudnn_version

    try:
        check_cudnn_version()
    except RuntimeError:  # of which it has no other sign
        return False
    return True


def forward(request: Request, arrays: Arrays):
    """The output (B, T, N, D), None for the log-sum-exp, and the leaves of `_attend`'s function."""
    out, pull = _attend(request, arrays)
    return out, None, *jax.tree.leaves(pull)


def backward(request: Request, arrays: Arrays, out, lse, *leaves_and_cotangents):
    """The gradients of query, key, value and bias, from what `forward` returns and the output's gradient."""
    *leaves, d_out, _ = leaves_and_cotangents
    _, pull = jax.eval_shape(functools.partial(_attend, request), arrays)
    return jax.tree.unflatten(jax.tree.structure(pull), leaves)(d_out)


# Compiled, so that the function has the same leaves whether values are known or traced.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _attend(request, arrays):
    """The output and the function from its gradient to those of query, key, value and bias."""
    low, high = request.band
    lengths = arrays.mask.key_lengths

    def attend(query, key, value, bias):
        out = jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias,
            scale=request.scale,
            is_causal=high == 0,
            query_seq_lengths=arrays.mask.query_lengths,
            key_value_seq_lengths=None if lengths is None else jnp.maximum(lengths, 1),
            local_window_size=None if low is None else (-low, 0),
            implementation=IMPLEMENTATION,
        )
        if lengths is not None:  # an example without keys
            out = jnp.where((lengths > 0)[:, None, None, None], out, jnp.zeros((), out.dtype))
        if arrays.mask.query_lengths is not None:
            rows = jnp.arange(query.shape[1], dtype=jnp.int32)[None] < arrays.mask.query_lengths[:, None]  # (B, T)
            out = jnp.where(rows[..., None, None], out, jnp.zeros((), out.dtype))
        return out

    return jax.vjp(attend, *arrays[:4])
