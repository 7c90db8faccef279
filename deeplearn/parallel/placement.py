"""Where the arrays of a training state live: small rules from a parameter's path to its dimensions' axes.

A rule is a regular expression and the mesh axes, one for each dimension (None: whole), or a function of
shape and mesh that returns them. The first that matches a path decides. A model may name its dimensions by what
they are, and LOGICAL gives such names axes. A recipe puts its own rules in front:

    rules = ((r"attention/out/kernel$", ("features", "embed")), *placement.RULES)

The rest of the state follows the parameters: a moment, an average or a target network has a parameter's
shape, and its path at the end of its own. Placement changes where a number is computed, never which.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplearn import errors
from deeplearn.parallel.mesh import replicated
from deeplearn.roles import name_of

Shape = tuple[int, ...]
Axes = tuple[str | None, ...]
Rule = tuple[str, Axes | Callable[[Shape, Mesh], Axes]]
State = TypeVar("State")
Params = TypeVar("Params")

# 16 KiB of float32: gathering less costs a collective's latency and saves no memory worth having.
MIN_SIZE = 4096


def fsdp(shape: Shape, mesh: Mesh, min_size: int = MIN_SIZE) -> Axes:
    """Divides the largest dimension that the fsdp axis divides; arrays under `min_size` elements stay whole.

    Fully sharded data parallelism: Rajbhandari et al. 2020, ZeRO, section 5 (stage 3).
    """
    if math.prod(shape) < min_size:
        return (None,) * len(shape)
    return _divide_largest(shape, mesh, (None,) * len(shape))


def columns(shape: Shape, mesh: Mesh, min_size: int = MIN_SIZE) -> Axes:
    """Divides output features, the last dimension, over tensor, and the largest of the others over fsdp.

    Tensor parallelism by columns: Shoeybi et al. 2019, Megatron-LM, section 3.
    """
    if math.prod(shape) < min_size:
        return (None,) * len(shape)
    tensor = mesh.shape["tensor"]
    last = "tensor" if tensor > 1 and shape[-1] % tensor == 0 else None
    return _divide_largest(shape, mesh, (*(None,) * (len(shape) - 1), last))


RULES: tuple[Rule, ...] = (
    (r"kernel$", columns),
    (r"", fsdp),
)

# The axis that divides a dimension of this name. Products with `features` on the outside and then on the inside, as in
# attention and in an MLP, need one sum over tensor between them (Shoeybi et al. 2019, section 3).
LOGICAL: dict[str, str | None] = {
    "features": "tensor",
    "vocabulary": "tensor",
    "embed": "fsdp",
    "length": None,
    "layers": None,  # of a loop over layers, which gathers what fsdp divides a layer at a time
}


def parse(text: str) -> tuple[tuple[Rule, ...], dict[str, str | None]]:
    """Rules and logical names of a text such as `embed=data, out/kernel$=tensor+fsdp`; the rest is LOGICAL.

    A logical name has one axis; the dimensions of what a regular expression matches have one each; `-` is whole.
    Raises UserError for a part that is no such pair.

    >>> rules, logical = parse("vocabulary=-, out/kernel$=tensor+fsdp")
    >>> rules, logical["vocabulary"]
    ((('out/kernel$', ('tensor', 'fsdp')),), None)
    """
    rules, logical = [], dict(LOGICAL)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, right = (word.strip() for word in part.rpartition("="))
        axes = tuple(None if axis == "-" else axis for axis in right.split("+"))
        if not sign or not name or not right:
            raise errors.UserError(f"placement {part!r} is not of the form NAME=AXIS or PATTERN=AXIS+AXIS")
        if name in LOGICAL:
            if len(axes) > 1:
                raise errors.UserError(f"placement {part!r}: a dimension has one axis, or - for none")
            logical[name] = axes[0]
        else:
            try:
                re.compile(name)
            except re.error as error:
                raise errors.UserError(f"placement {name!r} is no regular expression: {error}") from None
            rules.append((name, axes))
    return tuple(rules), logical


def place(params: Any, mesh: Mesh, rules: Sequence[Rule] = RULES, logical: dict[str, str | None] = LOGICAL) -> Any:
    """The NamedSharding of each parameter, in the same tree; arrays may be abstract (`jax.eval_shape`).

    An axis that does not divide its dimension leaves it whole, and so does an axis of size 1. A parameter
    that no rule matches is replicated.

    Raises UserError for a rule with an axis that the mesh lacks or that it gives twice, or with more or fewer axes than
    dimensions.

    >>> from deeplearn.parallel import mesh
    >>> shardings = place({"kernel": jax.numpy.zeros((128, 64))}, mesh.parse("data:1"))
    >>> shardings["kernel"].spec
    P()
    """

    def sharding(path, leaf):
        name = name_of(path)
        axes = _first(rules, name)
        axes = (None,) * len(leaf.shape) if axes is None else axes(leaf.shape, mesh) if callable(axes) else axes
        return NamedSharding(mesh, _spec(name, leaf.shape, [logical.get(axis, axis) for axis in axes], mesh))

    return jax.tree_util.tree_map_with_path(sharding, params)


def place_state(
    state: State,
    mesh: Mesh,
    rules: Sequence[Rule] = RULES,
    logical: dict[str, str | None] = LOGICAL,
    zero: bool = False,
) -> State:
    """The NamedSharding of each leaf of a training state, which is any tree with a field `params`.

    `state.params` go by the rules. A leaf elsewhere that has a parameter's shape, and its path at the end of
    its own, is placed with it: Adam's moments, an average, a target network. The rest is replicated: step,
    rng, batch statistics, Adafactor's rows and columns, the history of L-BFGS.

    With `zero`, what the optimizer has beside a parameter is divided over data too, by the largest dimension that is
    left (Rajbhandari et al. 2020, ZeRO, section 5, stage 1): each copy updates its part, and the parts are gathered.
    """
    placed = place(state.params, mesh, rules, logical)
    known = {
        name_of(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(placed), strict=True
        )
    }

    def sharding(path, leaf):
        keys = name_of(path).split("/")
        suffixes = ("/".join(keys[start:]) for start in range(len(keys)))  # the longest first
        shape, of_param = known.get(next((s for s in suffixes if s in known), None), (None, None))
        if shape != leaf.shape:
            return replicated(mesh)
        return _over_data(shape, of_param) if zero and keys[0] == "opt_state" else of_param

    return jax.tree_util.tree_map_with_path(sharding, state)


def gather(params: Params, shardings: Any, rules: Sequence[Rule] = RULES) -> Params:
    """Inside `jax.jit`, brings together what fsdp divides, for a forward pass; `tensor` stays divided.

    Called in the function that is differentiated, it makes fsdp what its name says: an all-gather of each
    parameter and, its transpose, a sum of each gradient, of which a device keeps its own part. Left to itself
    the compiler may move activations instead, and may carry small parameters through a loop divided. Free
    where fsdp has size 1. Parameters of a loop over layers stay as they are: the loop gathers them, see
    deeplearn.layers.sharding.
    """

    def together(path, x, sharding):
        named = (axes for pattern, axes in rules if isinstance(axes, tuple) and re.search(pattern, name_of(path)))
        if any("layers" in axes for axes in named):  # whichever rule decided where they lie
            return jax.lax.with_sharding_constraint(x, sharding)
        spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in sharding.spec))
        return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))

    return jax.tree_util.tree_map_with_path(together, params, shardings)


def table(tree: Any, shardings: Any, roles: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A line for each array: path, shape, the axes of its dimensions, bytes on one device, role; then the sums.

    Args:
      tree: of arrays or shapes.
      shardings: of each, in the same tree.
      roles: of the arrays that have one, by path.

    >>> from deeplearn.parallel import mesh
    >>> params = {"bias": jax.numpy.zeros(64), "kernel": jax.numpy.zeros((128, 64))}
    >>> print(table(params, place(params, mesh.parse("data:1"))))
    path    shape      axes   bytes a device
    bias    (64,)      whole             256
    kernel  (128, 64)  whole          32,768
    total                             33,024  of 33,024
    """
    rows, here, whole = [("path", "shape", "axes", "bytes a device", "role")], 0, 0
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
    ):
        on_device = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        here, whole = here + on_device, whole + leaf.size * leaf.dtype.itemsize
        spec = (*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec)))
        axes = " ".join(str(axis or "-") for axis in spec) if any(spec) else "whole"
        rows.append((name_of(path), str(leaf.shape), axes, f"{on_device:,}", str(roles.get(name_of(path), ""))))
    rows.append(("total", "", "", f"{here:,}", f"of {whole:,}"))
    rows = rows if roles else [(*row[:4], row[4] * (row is rows[-1])) for row in rows]
    path, shape, axes, size, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{p:{path}}  {s:{shape}}  {a:{axes}}  {b:>{size}}  {r}".rstrip() for p, s, a, b, r in rows)


def _divide_largest(shape: Shape, mesh: Mesh, axes: Axes) -> Axes:
    """`axes` with fsdp on the largest dimension that is free and divides, if there is one."""
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["fsdp"] == 0]
    largest = max(free, key=lambda i: shape[i], default=None)
    return tuple("fsdp" if i == largest else axis for i, axis in enumerate(axes))


def _over_data(shape: Shape, sharding: NamedSharding) -> NamedSharding:
    """The sharding with data on the largest dimension that is whole and that data divides; small arrays as they are."""
    mesh, spec = sharding.mesh, [*sharding.spec, *(None,) * (len(shape) - len(sharding.spec))]
    parts = mesh.shape["data"]
    free = [i for i, size in enumerate(shape) if spec[i] is None and size % parts == 0]
    if parts == 1 or not free or math.prod(shape) < MIN_SIZE:
        return sharding
    spec[max(free, key=lambda i: shape[i])] = "data"
    while spec[-1] is None:
        spec.pop()
    return NamedSharding(mesh, PartitionSpec(*spec))


def _first(rules: Sequence[Rule], name: str):
    """What the first rule says that matches, None if none does."""
    return next((axes for pattern, axes in rules if re.search(pattern, name)), None)


def _spec(name: str, shape: Shape, axes: Axes, mesh: Mesh) -> PartitionSpec:
    """The axes that really divide `shape`."""
    if len(axes) != len(shape):
        raise errors.UserError(
            f"the placement rule for {name} has {len(axes)} axes, the shape is {shape}: give one a dimension"
        )
    for axis in filter(None, axes):
        if axis not in mesh.shape:
            raise errors.unknown("mesh axis", axis, mesh.shape)
        if axes.count(axis) > 1:
            raise errors.UserError(f"placement gives {axis} to {axes.count(axis)} dimensions of {name}: give it to one")
    sizes = [mesh.shape.get(axis, 1) for axis in axes]
    kept = [a if n > 1 and size % n == 0 else None for a, n, size in zip(axes, sizes, shape, strict=True)]
    while kept and kept[-1] is None:
        kept.pop()  # as JAX writes the shardings of its outputs, so that equal placements compare equal
    return PartitionSpec(*kept)
