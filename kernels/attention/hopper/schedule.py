"""Which tiles of columns a block of rows visits: the full ones first, then those to be masked, and no empty one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels.attention import masks
from kernels.attention.hopper.plan import Plan, divide


def listed(plan: Plan, mask: masks.Mask) -> dict[str, jax.Array]:
    """The order of visits where the mask depends on data; nothing where arithmetic on the band tells it.

    order: the tiles of each block of rows, (B or 1, N or 1, blocks, tiles) int32; ends: how many of them are full, and
    how many are not empty, (B or 1, N or 1, blocks, 2) int32.
    """
    if mask == masks.Mask():
        return {}
    length, span = plan.sizes[1:3]
    size = (plan.block, plan.rows) if plan.flipped else (plan.rows, plan.block)
    kinds = masks.tiles(plan.request.band, mask, size, (length, span))
    kinds = kinds.swapaxes(2, 3) if plan.flipped else kinds
    order = jnp.argsort(-kinds, axis=-1, stable=True).astype(jnp.int32)
    ends = [(kinds == masks.FULL).sum(axis=-1), (kinds != masks.EMPTY).sum(axis=-1)]
    return {"order": order, "ends": jnp.stack(ends, axis=-1).astype(jnp.int32)}


def visits(plan: Plan, refs: dict, batch, head, block):
    """How many tiles are full, how many are visited in all, and the number of the tile at a place in the order."""
    if "order" in refs:
        order, ends = refs["order"], refs["ends"]
        at = tuple(n if size > 1 else 0 for n, size in zip((batch, head), order.shape[:2], strict=True))
        return ends[*at, block, 0], ends[*at, block, 1], lambda place: order[*at, block, place]
    first, low, high, last = _ranges(plan, block)
    full, before = high - low, low - first

    def tile(place):
        masked = place - full
        at_edges = jnp.where(masked < before, first + masked, high + masked - before)
        return jnp.where(place < full, low + place, at_edges)

    return full, last - first, tile


def _ranges(plan: Plan, block):
    """Tiles [first, last) that the band leaves for a block of rows, and [low, high) of them that it leaves whole."""
    (least, most), (_, tiles) = plan.request.band, plan.count
    if plan.flipped:  # i - j for j - i
        least, most = (None if end is None else -end for end in (most, least))
    top = block * np.int32(plan.rows)
    bottom = top + np.int32(plan.rows - 1)
    # A query beyond T adds nothing to keys and values, whatever its tile is called; a key beyond S must be masked.
    whole = tiles if plan.flipped else plan.sizes[2] // plan.block

    def below(x):  # tiles before column x
        return jnp.clip(divide(jnp.maximum(x, 0), plan.block)[0], 0, tiles)

    first = np.int32(0) if least is None else below(top + np.int32(least))
    last = np.int32(tiles) if most is None else below(bottom + np.int32(most + plan.block))
    low = np.int32(0) if least is None else below(bottom + np.int32(least + plan.block - 1))
    high = np.int32(whole) if most is None else jnp.minimum(below(top + np.int32(most + 1)), np.int32(whole))
    last = jnp.maximum(first, last)
    low = jnp.clip(low, first, last)
    return first, low, jnp.clip(high, low, last), last


def each(plan: Plan, refs: dict, batch, head, block, visit, carry):
    """Fold `visit(tile, masked, carry)` over the tiles of a block of rows."""
    full, count, tile = visits(plan, refs, batch, head, block)
    carry = lax.fori_loop(np.int32(0), full, lambda place, carry: visit(tile(place), False, carry), carry)
    if not _maskable(plan, refs):
        return carry
    return lax.fori_loop(full, count, lambda place, carry: visit(tile(place), True, carry), carry)


def _maskable(plan, refs):
    """Whether a tile may have to be masked: also for keys beyond S, if they are the columns."""
    ends = not plan.flipped and plan.sizes[2] % plan.block != 0
    return "order" in refs or plan.request.band != masks.Band() or ends


def pipelined(plan: Plan, refs: dict, batch, head, block, opened, visit, closed, nothing):
    """closed(the fold of `visit` over the tiles but the first, from opened(first tile, masked)); nothing() if none.

    One loop, in which masking is a branch: of two loops the compiler would not leave wgmma asynchronous.
    """
    full, count, tile = visits(plan, refs, batch, head, block)
    least, most = plan.request.band

    def masked(place):
        return place >= full if _maskable(plan, refs) else False

    def some():
        first = np.int32(0)
        carry = opened(tile(first), masked(first))
        step = lambda place, carry: visit(tile(place), masked(place), carry)  # noqa: E731
        return closed(lax.fori_loop(np.int32(1), count, step, carry))

    always = "order" not in refs and least is None and (most is None or most >= 0)
    return some() if always else lax.cond(count > 0, some, nothing)
