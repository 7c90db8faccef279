"""How arrays lie on the mesh that a program is traced for, where a layer has to say so."""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec


def whole(x: jax.Array, dimensions: Sequence[int]) -> jax.Array:
    """x, whole along some dimensions on every device that holds a part of it; the compiler decides on the others.

    Without a mesh, x as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    axes = (None if i in dimensions else PartitionSpec.UNCONSTRAINED for i in range(x.ndim))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
