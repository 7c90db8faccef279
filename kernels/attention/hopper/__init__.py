"""Attention for Hopper GPUs: wgmma fed by TMA, warpgroups that compute and one that copies."""

import math

import jax
import jax.numpy as jnp

from kernels import target
from kernels.attention import masks
from kernels.attention.hopper import biases, keys, outputs, queries, schedule, scores
from kernels.attention.hopper.plan import LOG2E, Plan, blocks
from kernels.attention.request import Arrays, Request

HOPPER = ("H100", "H200", "H800", "H20", "GH200")
DTYPES = ("float16", "bfloat16", "float32")
DEEPEST = 256
ROWS = 128  # what any tile of queries divides


def refuses(request: Request, arrays: Arrays) -> str | None:
    """Other GPUs, float64, heads wider than 256."""
    platform, kind = target.device()
    if target.interpreter() is None and not any(name in kind for name in HOPPER):
        return f"runs on {', '.join(HOPPER)}, and this is {kind}"
    if arrays.query.dtype.name not in DTYPES:
        return f"has no {arrays.query.dtype.name}"
    if arrays.query.shape[-1] > DEEPEST:
        return f"has heads of {DEEPEST} numbers at most, not {arrays.query.shape[-1]}"
    return None


def planned(request: Request, arrays: Arrays, kept: int, largest: int, flipped: bool = False) -> Plan:
    """The Plan of a pass in which a block keeps `kept` matrices of rows and streams two."""
    (batch, length, heads, depth), (span, groups) = arrays.query.shape, arrays.key.shape[1:3]
    depth = -(-depth // 32) * 32  # the narrowest tile that loads well
    parts, dtype = (2, jnp.dtype(jnp.bfloat16)) if arrays.query.dtype == jnp.float32 else (1, arrays.query.dtype)
    sizes = batch, length, span, heads, groups
    warpgroups, stages, block = blocks(depth, parts, kept, largest)
    tiles = warpgroups, block, stages
    return Plan(request, sizes, depth, parts, dtype, *tiles, flipped, arrays.bias is not None, slice=(0, depth))


def forward(request: Request, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T)."""
    length, _, depth = arrays.query.shape[1:]
    passed = planned(request, arrays, kept=1, largest=128)
    extras = extra(passed, arrays)
    found = outputs.run(passed, *(parts(passed, x) for x in arrays[:3]), extras)
    return whole([found["out"]], length, depth, arrays.query.dtype), found["lse"][:, :, :length] * math.log(2)


def backward(request: Request, arrays: Arrays, out, lse, d_out, d_lse):
    """The gradients of query, key, value and bias (None without one), from those of output and log-sum-exp.

        P = exp(S - lse),   dV = P' dO,   dS = P (dO V' - rowsum(dO O) + dlse),   dQ = dS K,   dK = dS' Q

    Queries, and keys and values, have a pass each: no sum depends on the order in which threads come to it.
    """
    dtype, (_, length, _, depth), span = arrays.query.dtype, arrays.query.shape, arrays.key.shape[1]
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2) - d_lse  # (B, N, T)
    pad = [(0, 0), (0, 0), (0, -length % ROWS)]
    # A row with nothing to attend to, or beyond T, has the weights 2^(x - inf) = 0.
    sums = {
        "lse": jnp.pad(jnp.where(jnp.isfinite(lse), lse * LOG2E, jnp.inf), pad, constant_values=jnp.inf),
        "delta": jnp.pad(delta, pad),
    }
    # Registers hold a large tile of scores with one more number for each of them, and a small one with several.
    numbers = arrays.bias, arrays.mask.dense, request.soft_cap, request.dropout_rate or None
    several, narrow = sum(x is not None for x in numbers) > 1, depth <= 64 and dtype != jnp.float32
    passed = planned(request, arrays, kept=2, largest=128 if narrow and not several else 64)
    tensors = [parts(passed, x) for x in (*arrays[:3], d_out)]
    extras = extra(passed, arrays) | sums
    found = {"query": [queries.run(each, *tensors, extras) for each in passed.slices]}
    passed = planned(request, arrays, kept=2, largest=32 if several else 64, flipped=True)
    extras = extra(passed, arrays) | sums
    for wanted in (("key", "value"),) if passed.depth <= 128 else (("key",), ("value",)):
        slices = [keys.run(each, wanted, *tensors, extras) for each in passed.slices]
        found |= {name: [each[name] for each in slices] for name in wanted}
    d_query, d_key, d_value = (
        whole(found[name], size, depth, dtype) for name, size in (("query", length), ("key", span), ("value", span))
    )
    if arrays.bias is None:
        return d_query, d_key, d_value, None
    passed = biases.fitting(passed._replace(flipped=False))
    size, mask = (passed.rows, passed.block), arrays.mask
    extras = scores.gather(passed, arrays) | sums
    extras["kinds"] = masks.tiles(request.band, mask, size, (length, span))
    d_bias = biases.run(passed, arrays.bias.shape, *tensors, extras)
    return d_query, d_key, d_value, d_bias.astype(arrays.bias.dtype)


def extra(passed: Plan, arrays: Arrays) -> dict[str, jax.Array]:
    """All inputs of a pass but queries, keys and values."""
    gathered = scores.gather(passed, arrays)
    return gathered | schedule.listed(passed, arrays.mask)


def parts(passed: Plan, x: jax.Array) -> list[jax.Array]:
    """(B, T, N, D) or (B, S, K, D) as 16-bit numbers that sum up to it, D padded to whole swizzles, T and S to the 8
    rows of a tile, beyond which TMA reads zeros.
    """
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % 8), (0, 0), (0, passed.depth - x.shape[-1])])
    high = x.astype(passed.dtype)
    return [high] if passed.parts == 1 else [high, (x - high.astype(x.dtype)).astype(passed.dtype)]


def whole(slices: list[list[jax.Array]], length: int, depth: int, dtype) -> jax.Array:
    """The sum of the parts, (B, T', N, D') each, of the slices of (B, T, N, D), what was padded cut off."""
    found = [sum(x.astype(dtype) for x in parts)[:, :length] for parts in slices]
    return jnp.concatenate(found, axis=-1)[..., :depth]
