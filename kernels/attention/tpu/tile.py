"""The mathematics of one tile of scores, inside a kernel."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.attention import dropout, masks
from kernels.attention.tpu import plan as plans

LOG2E = math.log2(math.e)


class Tile(NamedTuple):
    """Keys `keys` (a slice) of tile (i, j) of example b and head n: scores (q, k), or (k, q) if turned.

    scalars, inputs: the refs of the plan's.
    """

    plan: Any
    scalars: dict[str, Any]
    inputs: dict[str, Any]
    at: tuple[Any, Any, Any, Any]
    keys: slice

    def scores(self, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Scores that `unit` makes logits to base 2, and the slope of a soft cap, d logit / d (scale q k)."""
        scale, cap = self.plan.request.scale, self.plan.request.soft_cap
        scores = dot(key, query, (1, 1)) if self.plan.turned else dot(query, key, (1, 1))
        slope = None
        if cap is not None:
            bent = jnp.tanh(scores * (scale / cap))
            scores, slope = bent * cap, 1 - bent * bent
        elif unit(self.plan) == LOG2E:
            scores = scores * scale
        if "bias" in self.inputs:
            bias = self.inputs["bias"]
            scores = scores + self._part(bias).astype(jnp.float32)
        return scores, slope

    def masked(self, scores: jax.Array) -> jax.Array:
        """-inf where the mask says so."""
        rows, columns = self._numbers()
        example, here = self.at[0], masks.Mask()
        for name in ("query_lengths", "key_lengths"):
            if name in self.scalars:
                here = here._replace(**{name: self.scalars[name][example]})
        if "query_segments" in self.inputs:
            queries, keys = self.inputs["query_segments"][...], self.inputs["key_segments"][:, self.keys]
            down, across = (keys, queries) if self.plan.turned else (queries, keys)  # (1, size) each
            down = spread(lanes(down), across.shape[1])
            queries, keys = (across, down) if self.plan.turned else (down, across)
            here = here._replace(query_segments=queries, key_segments=keys)
        if "dense" in self.inputs:
            here = here._replace(dense=self._part(self.inputs["dense"]).astype(jnp.int32) != 0)
        span, size = self.plan.limit[1], self.plan.size[1]
        # The padding of the queries needs no rule: nothing of it is kept, and its cotangents are 0.
        allowed = masks.rules(self.plan.request.band, rows, columns, (None, span if span % size else None), here)
        return jnp.where(allowed, scores, -jnp.inf)

    def kept(self) -> jax.Array:
        """Whether dropout keeps each weight."""
        b, n, _, _ = self.at
        seeds = [self.scalars["seeds"][i].astype(jnp.uint32) for i in (0, 1)]
        head = b * self.plan.shape[1] + n
        head = self.scalars["heads"][head] if "heads" in self.scalars else head
        return dropout.keep(seeds, self.plan.request.dropout_rate, head, *self._numbers())

    def _numbers(self) -> tuple[jax.Array, jax.Array]:
        """Those of the queries and of the keys, (q, 1) and (1, k), or (1, q) and (k, 1)."""
        (q, _), (_, _, i, j) = self.plan.size, self.at
        count = self.keys.stop - self.keys.start
        shapes = ((1, q), (count, 1)) if self.plan.turned else ((q, 1), (1, count))
        rows, columns = (lax.broadcasted_iota(jnp.int32, shape, shape.index(max(shape))) for shape in shapes)
        return rows + i * q, columns + (j * self.plan.size[1] + self.keys.start)

    def _part(self, ref):
        """These keys of a block (q or 1, k or 1), or (k or 1, q or 1)."""
        axis = 0 if self.plan.turned else 1
        if ref.shape[axis] == 1:
            return ref[...]
        return ref[self.keys, :] if self.plan.turned else ref[:, self.keys]


def unit(plan) -> float:
    """What makes scores logits to base 2: without bias or cap the scale is in it, and costs nothing by itself."""
    request = plan.request
    plain = request.soft_cap is None and not plan.biased and request.scale > 0
    return request.scale * LOG2E if plain else LOG2E


def dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices over these axes, in float32; of float32 to the last bit, which takes six passes."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def spread(x: jax.Array, width: int) -> jax.Array:
    """(q, LANES), equal along the lanes, as (q, width)."""
    return jnp.tile(x, (1, -(-width // plans.LANES)))[:, :width]


def lanes(x: jax.Array) -> jax.Array:
    """A row (1, q) as (q, LANES), equal along the lanes."""
    return jnp.broadcast_to(x, (plans.LANES, x.shape[1])).T


def by_kind(plan, kind, attend) -> None:
    """attend(masked) unless the tile is empty: a full one needs no mask."""
    pl.when(kind == masks.FULL)(lambda: attend(False))
    if plan.masked:
        pl.when(kind == masks.PARTIAL)(lambda: attend(True))
