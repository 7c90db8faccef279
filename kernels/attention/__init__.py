"""Attention with everything that models ask of it, forward and backward."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kernels.attention import backends
from kernels.attention.masks import Mask
from kernels.attention.request import ask
from kernels.attention.ring import ring_attention as ring_attention


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: ArrayLike | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    segment_ids: ArrayLike | None = None,
    key_value_segment_ids: ArrayLike | None = None,
    logits_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    dropout_heads: ArrayLike | None = None,
    return_residual: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Softmax attention of each query to the keys that it may see, in each head.

        s[b, n, i, j] = c tanh(scale q[b, i, n] . k[b, j, n'] / c) + bias[b, n, i, j],   n' = n K // N
        y[b, i, n] = sum_j softmax_j(s[b, n, i])[j] v[b, j, n'],   lse[b, i, n] = log sum_j exp s[b, n, i, j]

    over those j alone that all masks allow; without a soft cap c the tanh falls away. A query that may attend to
    nothing gives 0, its lse is -inf, and no gradient flows through it.

    Sums are float32, or float64 for float64 inputs. First and second derivatives, in forward mode, reverse mode and all
    combinations of them, use memory linear in T and S, as the output does. 'reference' needs the memory of all scores,
    and so do third and higher derivatives, and symbolic shapes.

    The arguments of `jax.nn.dot_product_attention` mean the same here and give the same, with these exceptions: a query
    without keys gives 0, not the mean of the values; the residual is float32 and has gradients; windows are not
    negative; `scale` has no axes; query, key and value are of a floating dtype.

    Args:
      query: (B, T, N, D) of a floating dtype. Leading axes may be left out, as in the next four arrays. Any
        axis may have size 0, or a symbolic one (`jax.export`) if `implementation` is None or 'reference'.
      key, value: (B, S, K, D), N a multiple of K (grouped queries), of query's dtype.
      bias: broadcastable to (B, N, T, S), of a floating dtype, integer or bool; gradients are summed over what is
        broadcast.
      mask: bool, broadcastable to (B, N, T, S), True where a query may attend.
      scale: a number; None for 1 / sqrt(D). One that is traced may be learned; half precision is then computed in
        float32, which takes longer on an accelerator.
      is_causal: whether query i sees the keys j <= i alone.
      query_seq_lengths, key_value_seq_lengths: (B,) int32, where the padding begins.
      local_window_size: (l, r), query i sees i - l <= j <= i + r; an int w is (w, w).
      segment_ids, key_value_segment_ids: (B, T) and (B, S) int32; a query sees its own segment. The second defaults to
        the first.
      logits_soft_cap: c.
      dropout_rate: of the weights after the softmax, drawn from the key `dropout_rng`, alike in every implementation.
      dropout_heads: (B, N) int32, the numbers that tell the heads of all examples apart when dropout is drawn; b N + n
        unless given. Within `jax.shard_map` a device gives those of its own, and draws what one device would.
      return_residual: whether to return lse too.
      implementation: 'reference' (the formula), 'xla' (a tile at a time), 'tpu' and 'hopper' (kernels in Pallas),
        'cudnn', or None for the one that was fastest where it was measured, see `backends.fastest`.

    Returns:
      query's shape and dtype; with `return_residual` a pair with lse, (B, T, N) in float32.

    Raises:
      ValueError: shapes that don't fit, another dtype, dropout without a key.
      NotImplementedError: an implementation that can't do what is asked, with the reason.

    Example:
      >>> import jax.numpy as jnp
      >>> q = k = v = jnp.ones((2, 16, 4, 8))
      >>> attention(q, k, v, is_causal=True, local_window_size=(4, 0)).shape
      (2, 16, 4, 8)

    Vaswani et al. 2017, Attention is all you need, section 3.2; Dao et al. 2022, FlashAttention.
    """
    lengths = query_seq_lengths, key_value_seq_lengths
    segments = segment_ids, key_value_segment_ids
    if implementation is not None and implementation not in backends.NAMES:
        raise ValueError(f"implementation must be None or one of {', '.join(backends.NAMES)}, not {implementation!r}")
    request, arrays = ask(
        (query, key, value, bias),
        Mask(*lengths, *segments, mask),
        (is_causal, local_window_size),
        (scale, logits_soft_cap),
        (dropout_rate, dropout_rng, dropout_heads),
        return_residual,
    )
    out, lse = backends.attention(request, arrays, implementation)
    query = jnp.asarray(query)
    out = out.astype(query.dtype).reshape(query.shape)
    return (out, lse.swapaxes(1, 2).reshape(query.shape[:-1])) if return_residual else out
