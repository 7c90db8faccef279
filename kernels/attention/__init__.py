"""Attention with everything that models ask of it, forward and backward."""

import math

import jax
import jax.numpy as jnp

from kernels.attention import backends, dropout
from kernels.attention.masks import Band, Mask
from kernels.attention.request import Arrays, Request

DTYPES = ("float16", "bfloat16", "float32", "float64")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    segment_ids: jax.Array | None = None,
    key_value_segment_ids: jax.Array | None = None,
    logits_soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    return_residual: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Softmax attention of each query to the keys that it may see, in each head.

        s[b, n, i, j] = c tanh(scale q[b, i, n] . k[b, j, n'] / c) + bias[b, n, i, j],   n' = n K // N
        y[b, i, n] = sum_j softmax_j(s[b, n, i])[j] v[b, j, n'],   lse[b, i, n] = log sum_j exp s[b, n, i, j]

    over those j alone that all masks allow; without a soft cap c the tanh falls away. A query that may attend to
    nothing gives 0, its lse is -inf, and no gradient flows through it. The arguments of
    `jax.nn.dot_product_attention` mean what they mean there. Sums are float32, or float64 for float64 inputs. Memory is
    linear in T and S but for 'reference', and for second derivatives.

    Args:
      query: (B, T, N, D) or (T, N, D), of a floating dtype.
      key, value: (B, S, K, D), N a multiple of K (grouped queries), of query's dtype.
      bias: broadcastable to (B, N, T, S), of a floating dtype; gradients are summed over what is broadcast.
      mask: bool, broadcastable to (B, N, T, S), True where a query may attend.
      scale: None for 1 / sqrt(D).
      is_causal: whether query i sees the keys j <= i alone.
      query_seq_lengths, key_value_seq_lengths: (B,) int32, where the padding begins.
      local_window_size: (l, r), query i sees i - l <= j <= i + r; an int w is (w, w).
      segment_ids, key_value_segment_ids: (B, T) and (B, S) int32; a query sees its own segment. The second defaults to
        the first.
      logits_soft_cap: c.
      dropout_rate: of the weights after the softmax, drawn from the key `dropout_rng`, alike in every implementation.
      return_residual: whether to return lse too, (B, T, N), which has gradients.
      implementation: 'reference' (the formula), 'xla' (a tile at a time), or None: 'xla' from SHORT positions on, below
        which the formula is faster on a CPU.

    Returns:
      (B, T, N, D) of query's dtype; with `return_residual` a pair with lse, float32.

    Raises:
      ValueError: shapes that don't fit, another dtype, dropout without a key.

    Example:
      >>> q = k = v = jnp.ones((2, 16, 4, 8))
      >>> attention(q, k, v, is_causal=True, local_window_size=(4, 0)).shape
      (2, 16, 4, 8)

    Vaswani et al. 2017, Attention is all you need, section 3.2; Dao et al. 2022, FlashAttention.
    """
    single = query.ndim == 3
    if single:
        query, key, value = (x[None] for x in (query, key, value))
    _check(query, key, value)
    batch, length, heads, depth = query.shape
    span = key.shape[1]
    full = (batch, heads, length, span)
    for name, x in (("bias", bias), ("mask", mask)):
        _check_broadcast(name, x, full)
    if segment_ids is None and key_value_segment_ids is not None:
        raise ValueError("key_value_segment_ids needs segment_ids, those of the queries")
    if segment_ids is not None and key_value_segment_ids is None:
        if length != span:
            raise ValueError(f"segment_ids alone need as many keys as queries, not {span} and {length}")
        key_value_segment_ids = segment_ids
    lengths, segments = (batch,), ((batch, length), (batch, span))
    for name, x, shape in (
        ("query_seq_lengths", query_seq_lengths, lengths),
        ("key_value_seq_lengths", key_value_seq_lengths, lengths),
        ("segment_ids", segment_ids, segments[0]),
        ("key_value_segment_ids", key_value_segment_ids, segments[1]),
    ):
        if x is not None and (x.shape != shape or not jnp.issubdtype(x.dtype, jnp.integer)):
            raise ValueError(f"{name} must be integers of shape {shape}, not {x.dtype} {x.shape}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1), not {dropout_rate}")
    if dropout_rate and dropout_rng is None:
        raise ValueError("dropout_rate needs dropout_rng, a key")
    if logits_soft_cap is not None and logits_soft_cap <= 0:
        raise ValueError(f"logits_soft_cap must be above 0, not {logits_soft_cap}")
    if implementation is not None and implementation not in backends.NAMES:
        raise ValueError(f"implementation must be None or one of {', '.join(backends.NAMES)}, not {implementation!r}")
    band = Band(None, 0) if is_causal else Band()
    if local_window_size is not None:
        left, right = (local_window_size,) * 2 if isinstance(local_window_size, int) else local_window_size
        if left < 0 or right < 0:
            raise ValueError(f"local_window_size must not be negative, not {local_window_size}")
        band = band.meet(Band(-left, right))
    request = Request(
        scale=float(scale if scale is not None else 1 / math.sqrt(depth)),
        soft_cap=None if logits_soft_cap is None else float(logits_soft_cap),
        band=band,
        dropout_rate=float(dropout_rate),
    )
    as_4d = lambda x: None if x is None else x.reshape((1,) * (4 - x.ndim) + x.shape)  # noqa: E731
    rules = (query_seq_lengths, key_value_seq_lengths, segment_ids, key_value_segment_ids)
    data = Mask(*(None if x is None else x.astype(jnp.int32) for x in rules), as_4d(mask))
    seeds = dropout.seeds(dropout_rng) if dropout_rate else None
    arrays = Arrays(query, key, value, as_4d(bias), data, seeds)
    out, lse = backends.attention(request, arrays, implementation)
    lse = lse.swapaxes(1, 2)  # (B, T, N)
    out, lse = (out[0], lse[0]) if single else (out, lse)
    return (out, lse) if return_residual else out


def _check(query, key, value):
    shapes = f"{query.shape}, {key.shape} and {value.shape}"
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(f"query must be (B, T, N, D), key and value (B, S, K, D), not {shapes}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key must have the same B and D, not {shapes}")
    if not key.shape[2] or query.shape[2] % key.shape[2]:
        raise ValueError(f"the {query.shape[2]} heads of query must be a multiple of the {key.shape[2]} of key")
    dtypes = {x.dtype.name for x in (query, key, value)}
    if len(dtypes) > 1 or query.dtype.name not in DTYPES:
        raise ValueError(f"query, key and value must be of one dtype of {', '.join(DTYPES)}, not {', '.join(dtypes)}")


def _check_broadcast(name, x, full):
    if x is None:
        return
    fits = x.ndim <= 4 and all(n in (1, whole) for n, whole in zip(x.shape[::-1], full[::-1], strict=False))
    kind = jnp.bool_ if name == "mask" else jnp.floating
    if not fits or not jnp.issubdtype(x.dtype, kind):
        what = "bool" if name == "mask" else "floating"
        raise ValueError(f"{name} must be {what} and broadcastable to {full}, not {x.dtype} {x.shape}")
