"""How a convolution is divided over a mesh: by images and by channels, never by pixels.

XLA divides its own programs. A kernel that it cannot look into, and a form that takes images in another order, are
divided as a rule says, in which the axes of all operands and of the result have names:
"n h w c, i j c k -> n p q k". What has a letter in DIVIDED may be divided.
"""

from collections.abc import Callable

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kernels import target
from kernels.convolution.epilogue import Epilogue
from kernels.meshes import varying

KERNELS = ("hopper",)  # libtpu divides no kernel: `tpu` goes by explicit axes, or within jax.shard_map
ORDERED = ("xla",)  # whose dense forms take images in another order: XLA would move them between the devices
DIVIDED = "nk"


def call(name: str, function: Callable, rule: str, *operands: jax.Array | None, devices: int = 1) -> jax.Array:
    """`function(*operands)`, divided by the rule where XLA's partitioner needs one; None falls away.

    Images that are divided and not in the result are summed over the devices.
    """
    divides = name in KERNELS or name in ORDERED and devices > 1 and "k" in rule
    if not divides or target.interpreter() is not None:  # whose callbacks no compiler divides
        return function(*operands)
    inputs, result = (side.split(", ") for side in rule.split(" -> "))
    given = [i for i, a in enumerate(operands) if a is not None]
    inputs, result = [inputs[i].split() for i in given], result[0].split()

    @jax.jit  # which takes up constants, for which custom_partitioning has no place
    def run(*some):
        found = dict(zip(given, some, strict=True))
        return function(*(found.get(i) for i in range(len(operands))))

    def partition(mesh, shapes, _):
        where = _axes(inputs, [shape.sharding.spec for shape in shapes])
        place = lambda names: NamedSharding(mesh, PartitionSpec(*map(where.get, names)))  # noqa: E731
        over = [axis for name, entry in where.items() if name not in result for axis in _entries(entry)]

        def of_a_part(*some):
            part = run(*varying(some))
            return jax.lax.psum(part, tuple(over)) if over else part

        return mesh, of_a_part, place(result), tuple(map(place, inputs))

    divided = custom_partitioning(run)
    every = dict.fromkeys(name for names in (*inputs, result) for name in names)
    divided.def_partition(
        partition,
        sharding_rule=f"{', '.join(map(' '.join, inputs))} -> {' '.join(result)}",
        need_replication_factors=tuple(name for name in every if name not in DIVIDED),
    )
    return divided(*(operands[i] for i in given))


def explicit(function: Callable, x: jax.Array, w: jax.Array, follow: Epilogue, groups: int) -> jax.Array:
    """`function(x, w, follow)`, divided as the types of x and w say if they do, on a mesh of explicit axes."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or AxisType.Explicit not in mesh.axis_types:
        return function(x, w, follow)
    names = ["n h w c".split(), "i j e k".split()]
    where = _axes(names, [jax.typeof(a).sharding.spec for a in (x, w)])
    where |= {"k": None} if groups > 1 else {}
    spec = lambda names: PartitionSpec(*map(where.get, names.split()))  # noqa: E731
    *arrays, activation = follow
    kinds = [None if a is None else kind for a, kind in zip(arrays, ("k", "k", "k", "n p q k"), strict=True)]
    specs = [spec("n h w c"), spec("i j e k"), *(spec(kind) for kind in kinds if kind)]
    given = [jax.sharding.reshard(a, NamedSharding(mesh, s)) for a, s in
             zip((x, w, *(a for a in arrays if a is not None)), specs, strict=True)]  # fmt: skip

    def of_a_part(x, w, *some):
        some = iter(some)
        return function(x, w, Epilogue(*(next(some) if kind else None for kind in kinds), activation))

    return jax.shard_map(of_a_part, in_specs=tuple(specs), out_specs=spec("n p q k"))(*given)


def _axes(operands, specs):
    """The axes of the mesh by which each letter is divided, the first operand's that says so."""
    where = {}
    for names, spec in zip(operands, specs, strict=True):
        for name, entry in zip(names, spec, strict=False):
            taken = {axis for found in where.values() for axis in _entries(found)}
            if name in DIVIDED and name not in where and entry is not None and not taken & set(_entries(entry)):
                where[name] = entry
    return where


def _entries(entry):
    """The axes of the mesh in an entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
