"""How a kernel that XLA cannot look into is divided over a mesh: by examples and heads, never by positions."""

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels import target
from kernels.attention.request import Arrays
from kernels.meshes import varying

# Whose calls XLA's partitioner divides, through `custom_partitioning`, which libtpu has not. Where the types of arrays
# say how they are divided, on a mesh of explicit axes, everything is divided as they say.
KERNELS = ("hopper",)
WHOLE = ("t", "s", "d")  # what each device has all of


def forward(name: str | None, function: Callable, arrays: Arrays) -> tuple:
    """What `function(arrays)` gives, an output and a log-sum-exp, on a mesh too.

    name: of the implementation, None for plain JAX that has derivatives.
    """
    if not _concerned(name, arrays):
        return function(arrays)
    return divided(function, _numbered(arrays), (), ("query", "statistics"))


def backward(name: str | None, function: Callable, arrays: Arrays, *found) -> tuple:
    """The gradients of query, key, value and bias (None without one) that `function(arrays, *found)` gives.

    found: output, log-sum-exp, and the gradients of both, where the call is divided.
    """
    if not _concerned(name, arrays):
        return function(arrays, *found)
    more = tuple(zip(("query", "statistics") * 2, found, strict=True))
    kinds = ("query", "key", "key", "bias")[: 3 if arrays.bias is None else 4]
    gradients = divided(lambda *given: function(*given)[: len(kinds)], _numbered(arrays), more, kinds)
    if _typed(arrays):  # a gradient is divided as what it belongs to
        own = (jax.typeof(x).sharding for x in arrays[: len(kinds)])
        gradients = (jax.sharding.reshard(x, sharding) for x, sharding in zip(gradients, own, strict=True))
    return (*gradients, None)[:4]


def tangent(function: Callable, arrays: Arrays, out, lse, d_learned: tuple) -> tuple:
    """The tangents of output and log-sum-exp that `function(arrays, out, lse, d_learned)` gives; it is plain JAX.

    d_learned: tangents of query, key, value and bias (None without one).
    """
    if not _concerned(None, arrays):
        return function(arrays, out, lse, d_learned)
    kinds = ("query", "statistics", "query", "key", "key", "bias")
    more = tuple((kind, x) for kind, x in zip(kinds, (out, lse, *d_learned), strict=True) if x is not None)
    call = lambda arrays, out, lse, *d: function(arrays, out, lse, (*d, None)[:4])  # noqa: E731
    return divided(call, _numbered(arrays), more, ("query", "statistics"))


def _concerned(name, arrays):
    # An interpreter's callbacks have no place in what a compiler divides.
    return (name in KERNELS and target.interpreter() is None) or (name != "cudnn" and _typed(arrays))


def _typed(arrays):
    """Whether the types of arrays say how they are divided."""
    mesh = jax.typeof(arrays.query).sharding.mesh
    return not mesh.empty and AxisType.Explicit in mesh.axis_types


def _numbered(arrays):
    """With the heads' numbers where dropout needs them, on every device those of its own."""
    (batch, _, heads, _), known = arrays.query.shape, arrays.heads
    if arrays.seeds is None or known is not None:
        return arrays
    return arrays._replace(heads=jnp.arange(batch * heads, dtype=jnp.int32).reshape(batch, heads))


class Axes(NamedTuple):
    """The axes of all inputs and results, as 'b t (k g) d', with a name for what is divided alike.

    head: the name of the query heads, 'n' or '(k g)'; groups: K; shared: of each result, whether it is the sum of what
    devices give that have a part of the examples or heads each.
    """

    inputs: list[str]
    results: list[str]
    shared: list[bool]
    head: str
    groups: int

    def specs(self, mesh, query: PartitionSpec) -> tuple[list[PartitionSpec], list[PartitionSpec], list[tuple]]:
        """Of inputs and results, for queries that are divided like this, and the axes to sum each result over."""
        example, _, member, _ = (*query, None, None, None, None)[:4]
        if self.groups > 1 and self.groups % math.prod(mesh.shape[axis] for axis in _entries(member)):
            member = None  # key heads that would have to be divided within
        where = {"b": example, self.head: member, "k": member if self.groups > 1 else None}
        every = {*_entries(example), *_entries(member)}
        inputs, results = (
            [PartitionSpec(*map(where.get, _names(rule))) for rule in rules] for rules in (self.inputs, self.results)
        )
        own = ({axis for entry in spec for axis in _entries(entry)} for spec in results)
        sums = (tuple(sorted(every - has)) if shared else () for has, shared in zip(own, self.shared, strict=True))
        return inputs, results, list(sums)


def axes(arrays: Arrays, more: tuple[str, ...], results: tuple[str, ...]) -> Axes:
    """The Axes of these arrays, more inputs, and results; kinds are query, key, bias, and statistics (B, N, T)."""
    fresh = (f"x{n}" for n in itertools.count())
    heads, groups = arrays.query.shape[2], arrays.key.shape[2]
    head = "(k g)" if 1 < groups < heads else "n"
    group = next(fresh) if groups == 1 else "k" if groups < heads else "n"

    def table(x):
        """A bias or dense mask."""
        names = zip(("b", head, "t", "s"), x.shape, strict=True)
        return " ".join(name if size > 1 else next(fresh) for name, size in names)

    kinds = {
        "query": f"b t {head} d",
        "key": f"b s {group} d",
        "statistics": f"b {head} t",
        "bias": None if arrays.bias is None else table(arrays.bias),
    }
    mask = arrays.mask._replace(
        query_lengths="b",
        key_lengths="b",
        query_segments="b t",
        key_segments="b s",
        dense=None if arrays.mask.dense is None else table(arrays.mask.dense),
    )
    rules = Arrays(
        kinds["query"], kinds["key"], kinds["key"], kinds["bias"], mask, seeds=next(fresh), heads=f"b {head}"
    )
    is_none = lambda x: x is None  # noqa: E731
    rules = jax.tree.map(lambda x, rule: None if x is None else rule, arrays, rules, is_leaf=is_none)
    inputs = [*jax.tree.leaves(rules), *(kinds[kind] for kind in more)]
    return Axes(inputs, [kinds[kind] for kind in results], [kind in ("key", "bias") for kind in results], head, groups)


def divided(function: Callable, arrays: Arrays, more: tuple, results: tuple[str, ...]) -> Any:
    """`function(arrays, *more)`, on some examples and heads on each device.

    more: pairs of a kind and an array of it; results: the kinds of what it returns. Within `jax.shard_map` and on one
    device it is the function itself; under `jax.vmap` too, where XLA's partitioner does not divide it.
    """
    flat, tree = jax.tree.flatten((arrays, tuple(x for _, x in more)))
    named = axes(arrays, tuple(kind for kind, _ in more), results)

    @jax.jit  # which takes up constants, for which custom_partitioning has no place
    def run(*flat):
        arrays, more = jax.tree.unflatten(tree, flat)
        return tuple(function(arrays, *more))

    def summed(sums):
        return lambda *flat: tuple(
            jax.lax.psum(x, over) if over else x for x, over in zip(run(*varying(flat)), sums, strict=True)
        )

    if _typed(arrays):
        mesh, spec = jax.typeof(arrays.query).sharding.mesh, jax.typeof(arrays.query).sharding.spec
        inputs, outputs, sums = named.specs(mesh, spec)
        flat = [jax.sharding.reshard(x, NamedSharding(mesh, spec)) for x, spec in zip(flat, inputs, strict=True)]
        divide = functools.partial(jax.shard_map, mesh=mesh, in_specs=tuple(inputs), out_specs=tuple(outputs))
        return divide(summed(sums))(*flat)

    def partition(mesh, arguments, found):
        inputs, outputs, sums = named.specs(mesh, arguments[0].sharding.spec)
        placed = (tuple(NamedSharding(mesh, spec) for spec in specs) for specs in (outputs, inputs))
        return mesh, summed(sums), *placed

    rule = f"{', '.join(named.inputs)} -> {', '.join(named.results)}"
    sizes = {"g": arrays.query.shape[2] // named.groups} if named.head != "n" else {}
    whole = tuple(name for name in dict.fromkeys(rule.replace(",", " ").split()) if name in WHOLE)
    call = custom_partitioning(run)
    call.def_partition(partition, sharding_rule=rule, need_replication_factors=whole, **sizes)
    mapped = custom_vmap(lambda *flat: call(*flat))

    @mapped.def_vmap
    def _(size, batched, *flat):
        found = jax.vmap(run, in_axes=[0 if is_batched else None for is_batched in batched], axis_size=size)(*flat)
        return found, jax.tree.map(lambda _: True, found)

    return mapped(*flat)


def _names(rule):
    """The axes of one array: 'b t (k g) d' has four."""
    return re.findall(r"\([^)]*\)|\S+", rule)


def _entries(entry):
    """The axes of the mesh in an entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
