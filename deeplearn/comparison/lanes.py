"""How many runs one program trains, and whether side by side or one after another: a rule, without any timing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplearn.errors import UserError

SHARE = 0.8  # of an accelerator's memory: the forecast does not know everything
CPU_SHARE = 0.5  # of a machine's memory, which other programs need too
# FLOPs of a run's step below which a CPU trains runs side by side. Time side by side / one after another, Adam, 24 runs
# on two cores, one device a core, medians of 6 alternating pairs: 0.5 at 40 thousand FLOPs (sequence_rnn, 8 units), 0.7
# at 0.1 million and 0.8 at 0.6 million (digits_mlp, 16 and 32 units), 1.2 at 2.1 million (sequence_rnn; 0.7 with 64
# runs), 0.6 at 9.4 million (digits_mlp; 1.9 with 16 runs, 4 pairs). With 8 or 16 runs, 3 pairs: 1.2 at 116 million, 1.6
# at 441 million (digits_mlp, 512 and 1,024 units), 1.1 at 926 million (shakespeare_rnn), 1.2 at 1.2 billion
# (mnist_cnn).
FLOPS = 4e6


class Plan(NamedTuple):
    """How the runs of a sweep share the devices.

    Fields:
      lanes: runs in one program, a multiple of the number of devices; the other runs wait for the next call of it.
      together: whether a device's lanes run side by side, in a vmap, or one after another, in a loop.
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


def side_by_side(flops: float, platform: str | None = None) -> bool:
    """Whether runs train side by side: on accelerators always, on a CPU if a step of one run is small.

    The rule takes no measurement: two studies of the same program on the same platform always get the same answer, and
    with it the same bits.

    Args:
      flops: of one training step of one run, by XLA's cost analysis.
      platform: that of the devices; None for JAX's default.

    >>> side_by_side(1e12, "gpu"), side_by_side(1e12, "cpu")
    (True, False)
    """
    return (platform or jax.default_backend()) != "cpu" or flops < FLOPS


def multiple(number: int) -> int:
    """`number` rounded up to a multiple of the number of devices, which divide the lanes of a program.

    Raises:
      UserError: the number is below 1.
    """
    if number < 1:
        raise UserError(f"--lanes={number} is not a number of runs; give 1 or more, or leave it out")
    return -(-number // jax.device_count()) * jax.device_count()


def at_most(lanes: int | None, runs: int) -> int | None:
    """The lanes of a new plan for so many runs if the user chose `lanes`: no more than the runs need; None: no choice.

    >>> at_most(None, 6) is None, at_most(10_000, jax.device_count())  == jax.device_count()
    (True, True)
    """
    return None if lanes is None else min(multiple(lanes), multiple(runs))


def forecast(compiled) -> int:
    """Bytes on a device while a compiled program runs: arguments, results and temporaries, each buffer once."""
    memory = compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(sizes - memory.alias_size_in_bytes)


def room() -> int:
    """Bytes that a plan may use on each device: a share of all its memory, the same however much is free now."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return int(agreed(SHARE * stats["bytes_limit"]))
    import psutil

    return int(agreed(CPU_SHARE * psutil.virtual_memory().total / jax.local_device_count()))


def free() -> int:
    """Bytes that no program uses on each device at this moment."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return int(agreed(stats["bytes_limit"] - stats["bytes_in_use"]))
    import psutil

    return int(agreed(psutil.virtual_memory().available / jax.local_device_count()))


def agreed(value: float) -> float:
    """The least of a number that each process measures for itself: all processes must plan alike."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.process_allgather(np.float64(value)).min())


def choose(compile: Callable[[int], Any], runs: int, lanes: int | None = None) -> tuple[int, int, Any]:
    """The number of lanes for so many runs, the program's bytes on a device, and the compiled program.

    All runs go into one program if it fits into `room`; otherwise into equal groups, as few as fit.

    Args:
      compile: `lanes -> compiled`.
      runs: their number.
      lanes: the number of lanes if it is settled, a multiple of the number of devices.
    """
    if lanes is not None:
        compiled = compile(lanes)
        return lanes, forecast(compiled), compiled
    count, limit, lanes = jax.device_count(), room(), multiple(runs)
    while True:
        compiled = compile(lanes)
        needed = forecast(compiled)
        if needed <= limit or lanes == count:
            return lanes, needed, compiled
        fit = max(count, min(lanes - count, int(lanes * limit / needed) // count * count))
        lanes = multiple(-(-runs // -(-runs // fit)))  # as many groups, none of them nearly empty


def check_free(plan: Plan, free: int, stored: bool = False) -> None:
    """Raise UserError if a program needs more memory than is free: other lanes would give other bits.

    Args:
      plan: see Plan.
      free: bytes on each device before the program's arguments were there.
      stored: whether the plan is that of a study under way, which only a new plan can change.
    """
    if plan.bytes <= free:
        return
    count = jax.device_count()
    fit = max(count, int(plan.lanes * free / plan.bytes) // count * count)
    fewer = (
        f"give --lanes={fit}{' with --accept=implementations, which changes the bits' * stored}, or "
        if fit < plan.lanes
        else ""
    )
    raise UserError(
        f"{plan.lanes} runs in one program need {plan.bytes / 2**20:,.0f} MB of memory on a device, and"
        f" {free / 2**20:,.0f} MB are free; {fewer}free memory and run the same command again"
    )
