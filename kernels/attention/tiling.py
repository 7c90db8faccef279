"""The inputs of attention cut into tiles of queries and keys, for a backend in plain JAX."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.attention import dropout, masks
from kernels.attention.request import Arrays, Request
from kernels.attention.request import wide as sums


class Tiling(NamedTuple):
    """Padded to whole tiles, heads before time, N = K G query heads on K key heads.

    Fields:
      q: (B, K, G, T', D); k, v: (B, K, S', D); bias: (B or 1, K or 1, G or 1, T' or 1, S' or 1) or None.
      mask: its arrays padded alike.
      kinds: the kind of each tile over all examples and heads, (T' / q, S' / k): see `masks.tiles`.
      size, limit: of a tile, and (T, S) without the padding.
      wide: the dtype of sums.
    """

    request: Request
    q: Any
    k: Any
    v: Any
    bias: Any
    mask: masks.Mask
    seeds: Any
    kinds: Any
    size: tuple[int, int]
    limit: tuple[int, int]
    wide: Any

    @property
    def count(self) -> tuple[int, int]:
        """How many tiles of queries and of keys there are."""
        return self.q.shape[3] // self.size[0], self.k.shape[2] // self.size[1]

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

    def queries(self, x: jax.Array, i) -> jax.Array:
        """Tile i of (B, K, G, T', ...)."""
        return lax.dynamic_slice_in_dim(x, i * self.size[0], self.size[0], 3)

    def keys(self, x: jax.Array, j) -> jax.Array:
        """Tile j of (B, K, S', D)."""
        return lax.dynamic_slice_in_dim(x, j * self.size[1], self.size[1], 2)

    def scores(self, i, j, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores of a tile, -inf where nothing may be attended to, and their derivative by q k; (B, K, G, q, k)."""
        request = self.request
        scores = jnp.einsum("bhgqd,bhkd->bhgqk", q, k, preferred_element_type=self.wide) * request.scale
        slope = request.scale
        if request.soft_cap is not None:
            bent = jnp.tanh(scores / request.soft_cap)
            scores, slope = request.soft_cap * bent, request.scale * (1 - bent * bent)
        if self.bias is not None:
            scores = scores + self.window(self.bias, i, j).astype(self.wide)
        return self.masked(i, j, scores), slope

    def masked(self, i, j, scores: jax.Array) -> jax.Array:
        """-inf where the mask says so; a tile that is full is left alone."""
        start = (i * self.size[0], j * self.size[1])

        def mask(scores):
            allowed = masks.allowed(self.request.band, self.mask, start, self.size, self.limit)
            if allowed is None:
                return scores
            if allowed.shape[1] == 1:
                allowed = allowed[:, :, None]  # (B or 1, 1, 1, q, k)
            else:
                allowed = allowed.reshape(allowed.shape[0], *self.q.shape[1:3], *allowed.shape[2:])
            return jnp.where(allowed, scores, -jnp.inf)

        return lax.cond(self.kinds[i, j] == masks.FULL, lambda scores: scores, mask, scores)

    def kept(self, i, j) -> jax.Array:
        """Whether dropout keeps each weight of a tile, (B, K, G, q, k)."""
        batch, groups, members = self.q.shape[:3]
        number = jnp.arange(batch * groups * members, dtype=jnp.int32).reshape(batch, groups, members, 1, 1)
        rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in self.size)
        rows, columns = (rows + i * self.size[0])[:, None], (columns + j * self.size[1])[None]
        rows, columns = (x[None, None, None] for x in (rows, columns))
        return dropout.keep(self.seeds, self.request.dropout_rate, number, rows, columns)

    def window(self, x: jax.Array, i, j) -> jax.Array:
        """The tile of (..., T' or 1, S' or 1)."""
        starts = (i * self.size[0], j * self.size[1])
        for axis, start, size in zip((3, 4), starts, self.size, strict=True):
            x = x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, start, size, axis)
        return x


def cut(request: Request, arrays: Arrays, size: tuple[int, int]) -> Tiling:
    """The Tiling of the inputs; tiles are no larger than they need be."""
    query, key, value, bias, mask, seeds = arrays
    (batch, length, heads, depth), (span, groups) = query.shape, key.shape[1:3]
    size = tuple(min(n, -(-whole // 16) * 16) for n, whole in zip(size, (length, span), strict=True))
    to = [-(-whole // n) * n for n, whole in zip(size, (length, span), strict=True)]

    def padded(x, axis, which):
        if x is None or x.shape[axis] == 1 and axis > 1:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, to[which] - x.shape[axis])
        return jnp.pad(x, widths)

    q = padded(query, 1, 0).reshape(batch, to[0], groups, heads // groups, depth).transpose(0, 2, 3, 1, 4)
    k, v = (padded(x, 1, 1).transpose(0, 2, 1, 3) for x in (key, value))
    if bias is not None:
        bias = padded(padded(bias, 2, 0), 3, 1)
        split = (groups, heads // groups) if bias.shape[1] == heads else (1, 1)
        bias = bias.reshape(bias.shape[0], *split, *bias.shape[2:])
    kinds = masks.tiles(request.band, mask, size, (length, span))
    some, every = (kinds != masks.EMPTY).any((0, 1)), (kinds == masks.FULL).all((0, 1))
    kinds = jnp.where(every, masks.FULL, jnp.where(some, masks.PARTIAL, masks.EMPTY))
    wider = masks.Mask(
        mask.query_lengths,
        mask.key_lengths,
        padded(mask.query_segments, 1, 0),
        padded(mask.key_segments, 1, 1),
        padded(padded(mask.dense, 2, 0), 3, 1),
    )
    kinds = jnp.broadcast_to(kinds, (to[0] // size[0], to[1] // size[1]))
    wide = sums(query.dtype)
    return Tiling(request, q, k, v, bias, wider, seeds, kinds, size, (length, span), wide)
