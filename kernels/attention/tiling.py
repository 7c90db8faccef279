"""The inputs of attention cut into tiles of queries and keys, for a backend in plain JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels import target
from kernels.attention import dropout, masks
from kernels.attention.request import Arrays, Request
from kernels.attention.request import wide as sums


class Tiling(NamedTuple):
    """Padded to whole tiles, heads before time, N = K G query heads on K key heads; B and K may be 1 for all.

    Scores are (B, K, k, G, q), keys before queries: sums over keys then run down columns, which a CPU's vectors like,
    and every product of the gradient but for transposed inputs is a plain one.

    Fields:
      q: (B, K, G, T', D); k, v: (B, K, S', D); bias: (B, K, G or 1, T' or 1, S' or 1) or None.
      mask: lengths (B, 1, 1, 1, 1), segments (B, 1, 1, 1, T') and (B, 1, S', 1, 1), dense like bias.
      kinds: the kind of each tile over all members of a group, (B, K, T' / q, S' / k): see `masks.tiles`.
      heads: b N + n, (B, K, 1, G, 1).
    """

    q: Any
    k: Any
    v: Any
    bias: Any
    mask: masks.Mask
    kinds: Any
    heads: Any


class Grid(NamedTuple):
    """What is known when the program is compiled: the size of a tile, (T, S) without the padding, the dtype of sums,
    and whether any rule masks anything.
    """

    request: Request
    size: tuple[int, int]
    limit: tuple[int, int]
    wide: Any
    ruled: bool

    @property
    def count(self) -> tuple[int, int]:
        """How many tiles of queries and of keys there are."""
        return tuple(-(-whole // n) for whole, n in zip(self.limit, self.size, strict=True))

    def columns(self, i) -> tuple:
        """The first tile of keys that the band leaves for tile i of queries, and the one behind the last."""
        (q, k), (low, high) = self.size, self.request.band
        first = 0 if low is None else jnp.clip((i * q + low) // k, 0, self.count[1])
        last = self.count[1] if high is None else jnp.clip((i * q + q - 1 + high) // k + 1, 0, self.count[1])
        return jnp.int32(first), jnp.int32(last)

    def rows(self, j) -> tuple:
        """The first tile of queries that the band leaves for tile j of keys, and the one behind the last."""
        (q, k), (low, high) = self.size, self.request.band
        first = 0 if high is None else jnp.clip((j * k - high) // q, 0, self.count[0])
        last = self.count[0] if low is None else jnp.clip((j * k + k - 1 - low) // q + 1, 0, self.count[0])
        return jnp.int32(first), jnp.int32(last)

    def queries(self, x: jax.Array, i, axis: int = -1) -> jax.Array:
        """Tile i of queries along an axis of x."""
        return lax.dynamic_slice_in_dim(x, i * self.size[0], self.size[0], axis)

    def keys(self, x: jax.Array, j, axis: int = -1) -> jax.Array:
        """Tile j of keys along an axis of x."""
        return lax.dynamic_slice_in_dim(x, j * self.size[1], self.size[1], axis)

    def scores(self, tiles: Tiling, i, j, q: jax.Array, k: jax.Array, masked: bool) -> tuple[jax.Array, Any]:
        """Scores (B, K, k, G, q) of a tile, -inf where nothing may be attended to, and their derivative by q k.

        q: (B, K, D, G, q); k: (B, K, k, D).
        """
        scale, cap = self.request.scale, self.request.soft_cap
        scores, slope = jnp.einsum("bhkd,bhdgq->bhkgq", k, q, preferred_element_type=self.wide) * scale, scale
        if cap is not None:
            bent = jnp.tanh(scores / cap)
            scores, slope = cap * bent, scale * (1 - bent * bent)
        if tiles.bias is not None:
            scores = scores + jnp.moveaxis(self.window(tiles.bias, i, j), 4, 2).astype(self.wide)
        if masked:
            scores = jnp.where(self.allowed(tiles.mask, i, j), scores, -jnp.inf)
        return scores, slope

    def allowed(self, mask: masks.Mask, i, j) -> jax.Array:
        """The rules on a tile, broadcastable to (B, K, k, G, q)."""
        rows, columns = self.numbers(i, j)
        here = mask
        if mask.query_segments is not None:
            here = here._replace(
                query_segments=self.queries(mask.query_segments, i), key_segments=self.keys(mask.key_segments, j, 2)
            )
        if mask.dense is not None:
            here = here._replace(dense=jnp.moveaxis(self.window(mask.dense, i, j), 4, 2))
        ends = tuple(end if end % n else None for end, n in zip(self.limit, self.size, strict=True))
        return masks.rules(self.request.band, rows, columns, ends, here)

    def numbers(self, i, j) -> tuple[jax.Array, jax.Array]:
        """Of the queries and keys of a tile, (1, 1, 1, 1, q) and (1, 1, k, 1, 1)."""
        rows, columns = (
            n * size + jnp.arange(size, dtype=jnp.int32) for n, size in zip((i, j), self.size, strict=True)
        )
        return rows[None, None, None, None], columns[None, None, :, None, None]

    def kept(self, tiles: Tiling, seeds: jax.Array, i, j) -> jax.Array:
        """Whether dropout keeps each weight of a tile, (B, K, k, G, q)."""
        return dropout.keep(seeds, self.request.dropout_rate, tiles.heads, *self.numbers(i, j))

    def window(self, x: jax.Array, i, j) -> jax.Array:
        """The tile of (B, K, G, T' or 1, S' or 1)."""
        x = x if x.shape[3] == 1 else self.queries(x, i, 3)
        return x if x.shape[4] == 1 else self.keys(x, j, 4)


def over_heads(step: Callable, tree: Any, carry: Any, heads: tuple[int, int], some: tuple[int, int]) -> tuple[Any, Any]:
    """`step(carry, tree) -> (carry, results)` on some examples and key heads after others.

    The arrays of the tree and the carry are (B or 1, K or 1, ...), the results (B, K, ...). heads: (B, K); some: how
    many of each at once, all or one.
    """
    if some == heads:
        return step(carry, tree)
    steps = [n // m for n, m in zip(heads, some, strict=True)]

    def sizes(x):
        return *(min(m, n) for m, n in zip(some, x.shape, strict=False)), *x.shape[2:]

    def start(x, n):
        at = (n // steps[1], n % steps[1])
        at = (jnp.int32(0) if m == size else i for i, m, size in zip(at, sizes(x), x.shape, strict=False))
        return (*at, *(jnp.int32(0),) * (x.ndim - 2))

    def one(carry, n):
        part = lambda x: lax.dynamic_slice(x, start(x, n), sizes(x))  # noqa: E731
        new, found = step(jax.tree.map(part, carry), jax.tree.map(part, tree))
        return jax.tree.map(lambda x, y: lax.dynamic_update_slice(x, y, start(x, n)), carry, new), found

    carry, found = lax.scan(one, carry, jnp.arange(steps[0] * steps[1], dtype=jnp.int32))
    return carry, jax.tree.map(lambda x: x.reshape(*heads, *x.shape[3:]), found)


def cut(request: Request, arrays: Arrays, most: tuple[int, int]) -> tuple[Grid, Tiling]:
    """The inputs in tiles of at most this size, all alike and with as little padding as that allows."""
    query, key, value, bias, mask, _, numbers = arrays
    wide = sums(query.dtype)
    if target.device()[0] == "cpu":  # which has no products of a half precision that are summed in float32
        query, key, value = (x.astype(wide) for x in (query, key, value))
    (batch, length, heads, depth), (span, groups) = query.shape, key.shape[1:3]
    limit, members = (length, span), heads // groups
    counts = [-(-whole // n) for whole, n in zip(limit, most, strict=True)]
    size = tuple(-(-whole // (n * 16)) * 16 for n, whole in zip(counts, limit, strict=True))
    to = [-(-whole // n) * n for n, whole in zip(size, limit, strict=True)]

    def padded(x, axis, which):
        if x is None or x.shape[axis] == 1 and axis > 1:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, to[which] - x.shape[axis])
        return jnp.pad(x, widths)

    def by_groups(x):
        """(B or 1, N or 1, T or 1, S or 1) padded, (B or 1, K or 1, G or 1, T' or 1, S' or 1)."""
        if x is None:
            return None
        x = padded(padded(x, 2, 0), 3, 1)
        split = (groups, members) if x.shape[1] == heads else (1, 1)
        return x.reshape(x.shape[0], *split, *x.shape[2:])

    q = padded(query, 1, 0).reshape(batch, to[0], groups, members, depth).transpose(0, 2, 3, 1, 4)
    k, v = (padded(x, 1, 1).transpose(0, 2, 1, 3) for x in (key, value))
    wider = masks.Mask(
        *(None if x is None else x[:, None, None, None, None] for x in mask[:2]),
        None if mask.query_segments is None else padded(mask.query_segments, 1, 0)[:, None, None, None],
        None if mask.key_segments is None else padded(mask.key_segments, 1, 1)[:, None, :, None, None],
        by_groups(mask.dense),
    )
    kinds = masks.tiles(request.band, mask, size, limit)  # (B or 1, N or 1, T' / q, S' / k)
    kinds = kinds.reshape(kinds.shape[0], *((groups, -1) if kinds.shape[1] == heads else (1, 1)), *kinds.shape[2:])
    some, every = (kinds != masks.EMPTY).any(axis=2), (kinds == masks.FULL).all(axis=2)
    kinds = jnp.where(every, masks.FULL, jnp.where(some, masks.PARTIAL, masks.EMPTY))
    kinds = jnp.broadcast_to(kinds, (*kinds.shape[:2], *(whole // n for whole, n in zip(to, size, strict=True))))
    numbers = jnp.arange(batch * heads, dtype=jnp.int32) if numbers is None else numbers
    numbers = numbers.reshape(batch, groups, 1, members, 1)
    uneven = any(whole != end for whole, end in zip(to, limit, strict=True))
    ruled = uneven or request.band != masks.Band() or any(x is not None for x in mask)
    grid = Grid(request, size, limit, wide, ruled)
    return grid, Tiling(q, k, v, by_groups(bias), wider, kinds, numbers)
