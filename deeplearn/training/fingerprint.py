"""A fingerprint of arrays: two 32-bit sums that do not depend on how the array is laid out over devices."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Fingerprint(NamedTuple):
    """Two integers in [0, 2^32) that identify an array's bits, and whether all its numbers are finite."""

    sums: tuple[int, int]
    finite: bool


def _words(x):
    """The bits of `x` as uint32, one word an element; two where an element has 64 bits: (..., 2)."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    bits = (jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo)(x.dtype).bits
    return lax.bitcast_convert_type(x, f"uint{min(bits, 32)}").astype(jnp.uint32)


def _mix(x):
    """MurmurHash3's 32-bit finalizer: a bijection in which every bit that goes in stirs all that come out."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def _reduce(x, seed):
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    words = _words(x)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):  # row-major; a reshape would gather the shards
        index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    terms = [_mix(words ^ _mix(index + s)) for s in (seed, ~seed)]
    finite = jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.ones(x.shape, bool)
    finite = jnp.broadcast_to(finite[(...,) + (None,) * (words.ndim - x.ndim)], words.shape)
    # One variadic reduction, because each reduction is a kernel to compile, for every shape in the tree.
    zero = jnp.uint32(0)
    *sums, finite = lax.reduce(
        (*terms, finite),
        (zero, zero, jnp.bool_(True)),
        lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] & b[2]),
        range(words.ndim),
    )
    return jnp.stack([*sums, finite.astype(jnp.uint32)])


def fingerprints(leaves: dict[str, jax.Array]) -> dict[str, Fingerprint]:
    """The fingerprint of each named array.

        sum_i h(w_i xor h(i + seed)) mod 2^32,     w_i the i-th word of the array's bits, h a hash

    for two seeds that depend on the name. Integer sums commute, so that neither devices nor the order of
    reduction matter; h is a bijection, so that a change of one word always shows, and other changes go
    unnoticed with a probability near 2^-64. (Weights, sum_i w_i h(i), would miss any two flipped signs: 2^31
    times an odd number is 2^31.) It runs where the array lies, in one pass over its memory.

    Args:
      leaves: arrays of any shape and real, integer or boolean dtype, by name.

    >>> x = jnp.arange(4.0)
    >>> same, other = fingerprints({"x": x})["x"], fingerprints({"x": x.at[2].add(1e-6)})["x"]
    >>> same == fingerprints({"x": x})["x"], same.sums == other.sums, same.finite
    (True, False, True)
    """
    reduced = {name: _reduce(x, np.uint32(zlib.crc32(name.encode()))) for name, x in leaves.items()}
    return {
        name: Fingerprint((int(a), int(b)), bool(finite)) for name, (a, b, finite) in jax.device_get(reduced).items()
    }
