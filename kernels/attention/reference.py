"""The mathematics of attention; every backend is tested against it."""

import jax
import jax.numpy as jnp

from kernels.attention import dropout, masks
from kernels.attention.request import Arrays, Request
from kernels.attention.request import wide as sums


def attention(request: Request, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T); see `kernels.attention.attention`.

    In float32, or float64 if the inputs are.
    """
    q, k, v, bias, mask, seeds, numbers = arrays
    (batch, length, heads, _), (keys, groups) = q.shape, k.shape[1:3]
    wide = sums(q.dtype)
    if keys == 0:
        return jnp.zeros_like(q), jnp.full_like(q, -jnp.inf, shape=(batch, heads, length), dtype=wide)
    k, v = (jnp.repeat(x, heads // max(groups, 1), axis=2).astype(wide) for x in (k, v))  # (B, S, N, D)
    scores = jnp.einsum("bqnd,bknd->bnqk", q.astype(wide) * request.scale, k)  # (B, N, T, S)
    if request.soft_cap is not None:
        scores = request.soft_cap * jnp.tanh(scores / request.soft_cap)
    if bias is not None:
        scores = scores + bias.astype(wide)
    whole = (length, keys)
    if (allowed := masks.allowed(request.band, mask, (0, 0), whole, whole)) is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    most = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    most = jnp.where(jnp.isfinite(most), most, 0.0)  # a row with nothing to attend to
    weights = jnp.exp(scores - most)
    total = weights.sum(axis=-1, keepdims=True)
    some = total > 0
    weights = weights / jnp.where(some, total, 1.0)
    lse = jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + most, -jnp.inf)[..., 0]  # (B, N, T)
    if request.dropout_rate:
        numbers = jnp.arange(batch * heads, dtype=jnp.int32).reshape(batch, heads) if numbers is None else numbers
        rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in whole)
        kept = dropout.keep(
            seeds, request.dropout_rate, numbers[..., None, None], rows[:, None][None, None], columns[None, None, None]
        )
        weights = jnp.where(kept, weights / (1 - request.dropout_rate), 0.0)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v).astype(q.dtype), lse
