"""How arrays lie on the mesh that a program is traced for, where a layer has to say so."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from deeplearn.errors import UserError

# The axes of deeplearn.parallel.mesh that divide examples, positions and heads.
EXAMPLES, POSITIONS, HEADS = ("data", "fsdp"), "sequence", "tensor"


def parts(*axes: str) -> int:
    """How many parts these axes of the mesh make of a dimension; 1 without a mesh.

    >>> parts("data", "fsdp")
    1
    """
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def whole(x: jax.Array, dimensions: Sequence[int]) -> jax.Array:
    """x, whole along some dimensions on every device that holds a part of it; the compiler decides on the others.

    Without a mesh, or on one device, x as it is."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return x
    axes = (None if i in dimensions else PartitionSpec.UNCONSTRAINED for i in range(x.ndim))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def by_positions(x: jax.Array) -> jax.Array:
    """x (B, T, ...), of which each device of the axis `sequence` has T / sequence positions, in their order.

    Of what all of them have, each takes its own, without an exchange. The compiler decides on the other dimensions;
    without such an axis, x as it is. Raises UserError if the axis does not divide T.
    """
    if parts(POSITIONS) == 1:
        return x
    check_positions(x.shape[1])
    axes = (POSITIONS if i == 1 else PartitionSpec.UNCONSTRAINED for i in range(x.ndim))
    return jax.lax.with_sharding_constraint(whole(x, [1]), PartitionSpec(*axes))


def check_positions(length: int) -> None:
    """Raises UserError, with the nearest lengths that would do, unless the axis `sequence` divides this one.

    >>> check_positions(1023)
    """
    size = parts(POSITIONS)
    if length % size:
        below = length // size * size
        nearest = " or ".join(str(n) for n in (below, below + size) if n)
        raise UserError(f"a length of {length} does not divide over sequence = {size} devices: {nearest} would")
