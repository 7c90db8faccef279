"""What is asked of a backend: what shapes its program, and its arrays; and what may not be asked."""

import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import dropout
from kernels.attention.masks import Band, Mask
from kernels.meshes import varying

DTYPES = ("float16", "bfloat16", "float32", "float64")
REAL = {"floating": jnp.floating, "integer": jnp.integer, "bool": jnp.bool_}


class Request(NamedTuple):
    """What is known when the program is compiled: the factor on q k, the cap c of c tanh(s / c), the band, dropout, and
    whether the log-sum-exp is asked for.
    """

    scale: float
    soft_cap: float | None
    band: Band
    dropout_rate: float
    residual: bool = True


class Arrays(NamedTuple):
    """Inputs: query (B, T, N, D), key and value (B, S, K, D) with N a multiple of K, bias broadcastable to (B, N, T, S)
    or None, the Mask, two seeds for dropout or None, and the numbers of the heads (B, N), by which dropout tells them
    apart, where a device has some of them alone; None for b N + n.
    """

    query: Any
    key: Any
    value: Any
    bias: Any
    mask: Mask
    seeds: Any
    heads: Any = None


def wide(dtype):
    """The dtype of sums for inputs of this dtype."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def ask(inputs: tuple, mask: Mask, band: tuple, scores: tuple, drop: tuple, residual: bool) -> tuple[Request, Arrays]:
    """The arguments of `attention` as a Request and its Arrays, with the axes of 1 that they lack.

    A traced scale multiplies the queries. Half precision becomes float32 then, and so does the output.

    Args:
      inputs: query, key, value, bias.
      mask: the arguments of that name, which may be no arrays yet.
      band: (is_causal, local_window_size).
      scores: (scale, logits_soft_cap).
      drop: (dropout_rate, dropout_rng, dropout_heads).
      residual: whether the log-sum-exp is asked for.

    Raises:
      ValueError: as `attention` says.
    """
    query, key, value = (_as_4d(jnp.asarray(x)) for x in inputs[:3])
    bias = _as_4d(inputs[3])
    mask = Mask(*map(_as_array, mask[:4]), _as_4d(mask.dense))
    _check(query, key, value)
    (batch, length, heads, depth), span = query.shape, key.shape[1]
    full = (batch, heads, length, span)
    for name, x, kinds in (("bias", bias, REAL), ("mask", mask.dense, {"bool": jnp.bool_})):
        if x is not None and not (_fits(x.shape, full) and any(jnp.issubdtype(x.dtype, k) for k in kinds.values())):
            what = " or ".join(kinds)
            raise ValueError(f"{name} must be {what} and broadcastable to {full}, not {x.dtype} {x.shape}")
    if mask.query_segments is None and mask.key_segments is not None:
        raise ValueError("key_value_segment_ids needs segment_ids, those of the queries")
    if mask.query_segments is not None and mask.key_segments is None:
        if length != span:
            raise ValueError(f"segment_ids alone need as many keys as queries, not {span} and {length}")
        mask = mask._replace(key_segments=mask.query_segments)
    names = ("query_seq_lengths", "key_value_seq_lengths", "segment_ids", "key_value_segment_ids")
    shapes = ((batch,), (batch,), (batch, length), (batch, span))
    for name, x, shape in zip(names, mask[:4], shapes, strict=True):
        if x is not None and (x.shape != shape or not jnp.issubdtype(x.dtype, jnp.integer)):
            raise ValueError(f"{name} must be integers of shape {shape}, not {x.dtype} {x.shape}")
    (rate, rng, numbers), (scale, cap), (is_causal, window) = drop, scores, band
    _check_known(dropout_rate=rate, logits_soft_cap=cap, is_causal=is_causal, local_window_size=window)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1), not {rate}")
    if rate and rng is None:
        raise ValueError("dropout_rate needs dropout_rng, a key")
    numbers = _as_array(numbers)
    if numbers is not None and (numbers.shape != (batch, heads) or numbers.dtype != jnp.int32):
        raise ValueError(f"dropout_heads must be int32 of shape {(batch, heads)}, not {numbers.dtype} {numbers.shape}")
    if cap is not None and cap <= 0:
        raise ValueError(f"logits_soft_cap must be above 0, not {cap}")
    if scale is not None and (jnp.shape(scale) or jnp.iscomplexobj(scale)):
        raise ValueError(f"scale must be a real number, not {jnp.asarray(scale).dtype} {jnp.shape(scale)}")
    if scale is None and not isinstance(depth, int):
        raise ValueError(f"a symbolic D needs a scale, as in {query.shape}")
    if isinstance(scale, jax.core.Tracer):
        if query.dtype.itemsize < 4:  # whose range and precision a product may leave
            query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
        query, scale = query * scale.astype(query.dtype), 1.0
    scale = 1 / math.sqrt(max(depth, 1)) if scale is None else scale
    request = Request(float(scale), None if cap is None else float(cap), _band(*band), float(rate), residual)
    if bias is not None and not jnp.issubdtype(bias.dtype, jnp.floating):
        bias = bias.astype(wide(query.dtype))
    rules = (None if x is None else x.astype(jnp.int32) for x in mask[:4])
    seeds, numbers = (dropout.seeds(rng), numbers) if rate else (None, None)
    return request, varying(Arrays(query, key, value, bias, Mask(*rules, mask.dense), seeds, numbers))


def _as_array(x):
    return None if x is None else jnp.asarray(x)


def _as_4d(x):
    """With axes of 1 in front, as in `jax.nn.dot_product_attention`."""
    x = _as_array(x)
    return None if x is None else x.reshape((1,) * (4 - x.ndim) + x.shape)


def _band(is_causal, window):
    """Raises ValueError for a window that is none."""
    band = Band(None, 0) if is_causal else Band()
    if window is None:
        return band
    try:
        left, right = map(operator.index, window if np.iterable(window) else (window,) * 2)
    except (TypeError, ValueError):
        raise ValueError(f"local_window_size must be an int or a pair of ints, not {window}") from None
    if left < 0 or right < 0:
        raise ValueError(f"local_window_size must not be negative, not {window}")
    return band.meet(Band(-left, right))


def _check_known(**options):
    """Raises ValueError for what shapes the program and is traced."""
    for name, x in options.items():
        if any(isinstance(n, jax.core.Tracer) for n in jax.tree.leaves(x)):
            raise ValueError(f"{name} must be known when the program is compiled, and is traced")


def _check(query, key, value):
    shapes = f"{query.shape}, {key.shape} and {value.shape}"
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(f"query must be (B, T, N, D), key and value (B, S, K, D), not {shapes}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key must have the same B and D, not {shapes}")
    if query.shape[2] % key.shape[2] if key.shape[2] else query.shape[2]:
        raise ValueError(f"the {query.shape[2]} heads of query must be a multiple of the {key.shape[2]} of key")
    dtypes = {x.dtype.name for x in (query, key, value)}
    if len(dtypes) > 1 or query.dtype.name not in DTYPES:
        raise ValueError(f"query, key and value must be of one dtype of {', '.join(DTYPES)}, not {', '.join(dtypes)}")


def _fits(shape, full):
    return len(shape) <= 4 and all(n in (1, whole) for n, whole in zip(shape[::-1], full[::-1], strict=False))
