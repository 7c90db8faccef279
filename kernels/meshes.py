"""Arrays on several devices, within `jax.shard_map`."""

from typing import Any

import jax
from jax.sharding import AxisType


def varying(arrays: Any) -> Any:
    """Within `jax.shard_map` all differ from device to device if one does: what a loop carries must keep its type, and
    the gradient of what does not differ is summed over the devices.
    """
    axes = lambda x: jax.typeof(x).manual_axis_type.varying  # noqa: E731
    every = frozenset().union(*map(axes, jax.tree.leaves(arrays)))

    def mark(x):
        missing = tuple(sorted(every - axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def automatic() -> bool:
    """Whether the mesh at hand has axes that XLA's partitioner divides, which it can't do to most kernels."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(n > 1 and kind == AxisType.Auto for n, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))
