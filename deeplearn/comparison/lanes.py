"""How many runs one program trains, and whether side by side or one after another: forecast and measured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHARE = 0.8  # of the free memory, for what the forecast does not know


class Plan(NamedTuple):
    """How the runs of a sweep share the devices.

    Fields:
      lanes: runs in one program; what exceeds them waits for the next call of the same program.
      together: whether a device's lanes go side by side, in a vmap, or one after another.
      bytes: the program's memory on a device, as compiled.
    """

    lanes: int
    together: bool
    bytes: int

    def __str__(self) -> str:
        how = "side by side" if self.together else "one after another"
        return f"{self.lanes} in one program, {how}, {self.bytes / 2**20:,.0f} MB"


def mesh() -> Mesh:
    """All devices in one axis, over which runs are divided; those of every process."""
    return Mesh(np.array(jax.devices()), ("runs",))


def shared(tree, devices: Mesh):
    """Arrays that every process has alike, whole on every device."""
    return jax.device_put(tree, NamedSharding(devices, PartitionSpec()))


def each(function: Callable[[Any, Any], Any], devices: Mesh, together: bool = True) -> Callable[[Any, Any], Any]:
    """`(runs, shared) -> stacked function(run, shared)`, over the leading axis of every array in `runs`.

    The runs are divided over the devices; there they go through one vmap, or one after another.
    """

    def local(runs, shared):
        if together:
            return jax.vmap(function, in_axes=(0, None))(runs, shared)
        return jax.lax.map(lambda run: function(run, shared), runs)

    over, whole = PartitionSpec("runs"), PartitionSpec()
    return jax.shard_map(local, mesh=devices, in_specs=(over, whole), out_specs=over, check_vma=False)


def forecast(compiled) -> int:
    """Bytes on a device while a compiled program runs: arguments, results and temporaries, each buffer once."""
    memory = compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(sizes - memory.alias_size_in_bytes)


def free() -> int:
    """Bytes that a program may take on each device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats:
        return int(SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    import psutil

    return int(SHARE * psutil.virtual_memory().available / jax.local_device_count())


def agreed(values, reduce=np.max) -> np.ndarray:
    """Numbers that each process measured for itself, reduced over the processes: all of them must plan alike."""
    if jax.process_count() == 1:
        return np.asarray(values)
    from jax.experimental import multihost_utils

    return reduce(multihost_utils.process_allgather(np.asarray(values, np.float64)), axis=0)


def choose(compile: Callable[[int, bool], Any], seconds: Callable[[Any, int], float], runs: int, together: bool | None):
    """The Plan for so many runs, and its compiled program.

    All runs go into one program if the memory of the devices bears it, else as many as do, in equal groups. Whether
    they go side by side or one after another is measured, unless `together` says so: the first wins where a single run
    leaves the cores idle, the second where it fills them and more would only crowd the caches.

    Args:
      compile: `(lanes, together) -> compiled`.
      seconds: `(compiled, lanes) -> a step's seconds`.
      runs: their number.
      together: as in Plan, or None.
    """
    count, room = jax.device_count(), int(agreed(free(), np.min))

    def fitting(together):
        lanes = -(-runs // count) * count
        while True:
            compiled = compile(lanes, together)
            needed = forecast(compiled)
            if needed <= room or lanes == count:
                return Plan(lanes, together, needed), compiled
            fit = max(count, min(lanes - count, int(lanes * room / needed) // count * count))
            lanes = -(-runs // -(-runs // fit) // count) * count  # as many groups, none of them nearly empty

    if together is not None or runs <= count:
        return fitting(together is not False)
    # Not in two threads: XLA compiles on all cores, and two compilations at once take longer than one after the other.
    options = [fitting(True), fitting(False)]
    a_run = agreed([seconds(compiled, plan.lanes) / plan.lanes for plan, compiled in options])
    return options[int(a_run.argmin())]
