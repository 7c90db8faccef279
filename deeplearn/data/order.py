"""The order in which a training run meets its examples: a pure function of a key and a position.

The examples form an endless stream, one random permutation of `range(size)` after another, one an epoch:

    stream[position] = permutation(key, position // size, size)[position % size]

and the batch of step n is `stream[n * batch_size : (n + 1) * batch_size]`. So every example comes exactly
once an epoch, none is ever dropped (a batch may straddle two epochs), and resuming at step n needs nothing
but n.

`chunk_indices` computes the stream on the device, inside a compiled program; `indices` computes it on the
host, for examples that are read from files. Both give the same numbers.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn.errors import UserError

_ROUNDS = 96  # three times log2 of the largest size, six times that of most


@functools.partial(jax.jit, static_argnames="size")
def permutation(key: jax.Array, epoch, size: int) -> jax.Array:
    """The order of one epoch: `range(size)` shuffled by `fold_in(key, epoch)`, (size,) int32.

    The swap-or-not shuffle: each round draws a pivot K, pairs every x with its partner (K - x) mod size, and
    swaps each pair with probability 1/2. Every element is moved by itself, without a sort, which on a CPU is
    ten to thirty times as fast as `jax.random.permutation`: a sweep of many small runs would notice.

    Hoang, Morris and Rogaway, "An enciphering scheme based on a card shuffle", CRYPTO 2012; a
    pair's coin is the finaliser of MurmurHash3 (Appleby, 2011).

    >>> sorted(permutation(jax.random.key(0), 3, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return _shuffle(_draws(key, epoch), size)


def _draws(key, epoch):
    """An epoch's (2, _ROUNDS) random words."""
    return jax.random.bits(jax.random.fold_in(key, epoch), (2, _ROUNDS), jnp.uint32)


def _shuffle(draws, size):
    pivots, salts = draws
    pivots = pivots % jnp.uint32(size)

    def swap_or_not(i, x):  # (size,)
        pivot = pivots[i]
        partner = jnp.where(x <= pivot, pivot - x, pivot - x + jnp.uint32(size))
        coin = _mix(jnp.maximum(x, partner) ^ salts[i]) >> 31
        return jnp.where(coin == 1, partner, x)

    return jax.lax.fori_loop(0, _ROUNDS, swap_or_not, jnp.arange(size, dtype=jnp.uint32)).astype(jnp.int32)


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def chunk_indices(key: jax.Array, step, steps: int, batch_size: int, size: int) -> jax.Array:
    """The examples of `steps` consecutive batches, from batch `step` on: (steps, batch_size) int32.

    Only `key` and `step` may be traced; under `vmap` each key has a stream of its own. Each epoch that the
    chunk can touch is shuffled once, whatever the number of steps. Exact for every int32 `step >= 0`, also
    where `step * batch_size` passes 2**31, while the epoch is below 2**32. Raises UserError unless
    `size + steps * batch_size` is below 2**31.

    >>> chunk_indices(jax.random.key(0), 0, 2, 5, size=10).shape
    (2, 5)
    >>> sorted(chunk_indices(jax.random.key(0), 0, 2, 5, size=10).ravel().tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    length = steps * batch_size
    if size + length >= 2**31:
        raise UserError(
            f"a chunk of {steps} batches of {batch_size} of {size} examples has more indices than 32 bits hold; lower "
            "config.log_every, or in a comparison config.eval_every"
        )
    epoch, offset = _place(step, batch_size, size)
    latest_offset = size - math.gcd(batch_size, size)
    epochs = (latest_offset + length - 1) // size + 1
    # Draws in a vmap depend on which epochs are in it, where the generator is not Threefry.
    draws = jax.lax.map(lambda e: _draws(key, e), epoch + jnp.arange(epochs, dtype=jnp.uint32))
    stream = jax.vmap(lambda draws: _shuffle(draws, size))(draws).reshape(-1)  # (epochs * size,)
    return jax.lax.dynamic_slice(stream, (offset,), (length,)).reshape(steps, batch_size)


def _place(step, batch_size: int, size: int) -> tuple[jax.Array, jax.Array]:
    """divmod(step * batch_size, size), in 32 bits though the product needs 62.

    The step is a sum of powers of two, and each power's own quotient and remainder are constants: add those
    up, and carry into the quotient when the remainders reach `size`.
    """
    step = jnp.asarray(step).astype(jnp.uint32)
    powers = [divmod(batch_size << bit, size) for bit in range(31)]
    quotients = jnp.asarray(np.array([quotient % 2**32 for quotient, _ in powers], np.uint32))
    remainders = jnp.asarray(np.array([remainder for _, remainder in powers], np.uint32))

    def add_power(bit, place):
        epoch, offset = place
        present = (step >> bit) & 1
        offset = offset + present * remainders[bit]
        carry = (offset >= jnp.uint32(size)).astype(jnp.uint32)
        return epoch + present * quotients[bit] + carry, offset - carry * jnp.uint32(size)

    zero = jnp.uint32(0)
    epoch, offset = jax.lax.fori_loop(zero, jnp.uint32(31), add_power, (zero, zero))
    return epoch, offset.astype(jnp.int32)


def indices(key: jax.Array, positions, size: int) -> np.ndarray:
    """The examples at these positions of the stream, on the host: int32, of the positions' shape.

    Positions are int64, in any order; the permutations of the last few epochs are remembered.

    >>> key = jax.random.key(0)
    >>> bool((indices(key, [[0, 1], [2, 3]], size=10) == chunk_indices(key, 0, 2, 2, size=10)).all())
    True
    """
    epochs, offsets = np.divmod(np.asarray(positions, np.int64), size)
    key_data = jax.device_get(jax.random.key_data(key))
    identity = str(jax.random.key_impl(key)), key_data.shape, key_data.tobytes()
    result = np.empty(offsets.shape, np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = _host_permutation(*identity, int(epoch), size)[offsets[here]]
    return result


@functools.lru_cache(maxsize=4)
def _host_permutation(impl: str, shape: tuple, key_data: bytes, epoch: int, size: int) -> np.ndarray:
    words, epoch = jax.device_put((np.frombuffer(key_data, np.uint32).reshape(shape), np.uint32(epoch)))
    return jax.device_get(permutation(jax.random.wrap_key_data(words, impl=impl), epoch, size))
