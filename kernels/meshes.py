"""Arrays on several devices, within `jax.shard_map`."""

from typing import Any

import jax


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
