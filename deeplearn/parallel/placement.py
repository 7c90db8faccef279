"""Where the arrays of a training state live: small rules from a parameter's path to its dimensions' axes.

A rule is a regular expression and the mesh axes, one for each dimension (None: whole), or a function of
shape and mesh that returns them. The first that matches a path decides. A recipe puts its own in front:

    rules = ((r"attention/out/kernel$", ("tensor", "fsdp")), *placement.RULES)

The rest of the state follows the parameters: a moment, an average or a target network has a parameter's
shape, and its path at the end of its own. Placement changes where a number is computed, never which.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplearn import errors
from deeplearn.parallel.mesh import replicated

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


def place(params: Any, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Any:
    """The NamedSharding of each parameter, in the same tree; arrays may be abstract (`jax.eval_shape`).

    An axis that does not divide its dimension leaves it whole, and so does an axis of size 1. A parameter
    that no rule matches is replicated.

    Raises UserError for a rule with an axis that the mesh lacks, or with more or fewer axes than dimensions.

    >>> from deeplearn.parallel import mesh
    >>> shardings = place({"kernel": jax.numpy.zeros((128, 64))}, mesh.parse("data:1"))
    >>> shardings["kernel"].spec
    P()
    """

    def sharding(path, leaf):
        name = _name(path)
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), (None,) * len(leaf.shape))
        axes = axes(leaf.shape, mesh) if callable(axes) else axes
        return NamedSharding(mesh, _spec(name, leaf.shape, axes, mesh))

    return jax.tree_util.tree_map_with_path(sharding, params)


def place_state(state: State, mesh: Mesh, rules: Sequence[Rule] = RULES) -> State:
    """The NamedSharding of each leaf of a training state, which is any tree with a field `params`.

    `state.params` go by the rules. A leaf elsewhere that has a parameter's shape, and its path at the end of
    its own, is placed with it: Adam's moments, an average, a target network. The rest is replicated: step,
    rng, batch statistics, Adafactor's rows and columns, the history of L-BFGS.
    """
    placed = place(state.params, mesh, rules)
    known = {
        _name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(placed), strict=True
        )
    }

    def sharding(path, leaf):
        keys = _name(path).split("/")
        suffixes = ("/".join(keys[start:]) for start in range(len(keys)))  # the longest first
        shape, of_param = known.get(next((s for s in suffixes if s in known), None), (None, None))
        return of_param if shape == leaf.shape else replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding, state)


def gather(params: Params, shardings: Any) -> Params:
    """Inside `jax.jit`, brings together what fsdp divides, for a forward pass; `tensor` stays divided.

    Called in the function that is differentiated, it makes fsdp what its name says: an all-gather of each
    parameter and, its transpose, a sum of each gradient, of which a device keeps its own part. Left to itself
    the compiler may move activations instead, and may carry small parameters through a loop divided. Free
    where fsdp has size 1.
    """

    def together(sharding):
        axes = (None if axis == "fsdp" else axis for axis in sharding.spec)
        return NamedSharding(sharding.mesh, PartitionSpec(*axes))

    return jax.lax.with_sharding_constraint(params, jax.tree.map(together, shardings))


def table(tree: Any, shardings: Any) -> str:
    """A line for each array: path, shape, the axes of its dimensions, bytes on one device; then the sums.

    >>> from deeplearn.parallel import mesh
    >>> params = {"bias": jax.numpy.zeros(64), "kernel": jax.numpy.zeros((128, 64))}
    >>> print(table(params, place(params, mesh.parse("data:1"))))
    path    shape      axes   bytes a device
    bias    (64,)      whole             256
    kernel  (128, 64)  whole          32,768
    total                             33,024  of 33,024
    """
    rows, here, whole = [("path", "shape", "axes", "bytes a device")], 0, 0
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
    ):
        on_device = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        here, whole = here + on_device, whole + leaf.size * leaf.dtype.itemsize
        spec = (*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec)))
        axes = " ".join(str(axis or "-") for axis in spec) if any(spec) else "whole"
        rows.append((_name(path), str(leaf.shape), axes, f"{on_device:,}"))
    rows.append(("total", "", "", f"{here:,}"))
    path, shape, axes, size = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{p:{path}}  {s:{shape}}  {a:{axes}}  {b:>{size}}" for p, s, a, b in rows]
    return "\n".join(lines) + f"  of {whole:,}"


def _divide_largest(shape: Shape, mesh: Mesh, axes: Axes) -> Axes:
    """`axes` with fsdp on the largest dimension that is free and divides, if there is one."""
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["fsdp"] == 0]
    largest = max(free, key=lambda i: shape[i], default=None)
    return tuple("fsdp" if i == largest else axis for i, axis in enumerate(axes))


def _spec(name: str, shape: Shape, axes: Axes, mesh: Mesh) -> PartitionSpec:
    """The axes that really divide `shape`."""
    if len(axes) != len(shape):
        raise errors.UserError(
            f"the placement rule for {name} has {len(axes)} axes, the shape is {shape}: give one a dimension"
        )
    for axis in axes:
        if axis is not None and axis not in mesh.shape:
            raise errors.unknown("mesh axis", axis, mesh.shape)
    sizes = [mesh.shape.get(axis, 1) for axis in axes]
    kept = [a if n > 1 and size % n == 0 else None for a, n, size in zip(axes, sizes, shape, strict=True)]
    while kept and kept[-1] is None:
        kept.pop()  # as JAX writes the shardings of its outputs, so that equal placements compare equal
    return PartitionSpec(*kept)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
