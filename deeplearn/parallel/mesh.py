"""The one mesh of devices that every program runs on, and how a batch lies on it.

Its axes are `data` (copies of the model, the batch divided among them), `fsdp` (the batch divided too, and
the state with it), `sequence` (each example's positions divided: for long ones) and `tensor` (features divided).
Unused axes have size 1, so one device is the mesh 1 x 1 x 1 x 1 and takes no path of its own.

Devices that are near each other differ in the last axes: in tensor, for whose sums every layer waits, then in sequence,
round which keys and values go from neighbour to neighbour while each device computes. The sums of gradients over data
and fsdp are once a step or a layer, and can go far. On a TPU JAX gives the last axes the first choice
among the rings of the torus.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deeplearn import errors

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")

Batch = TypeVar("Batch")


def parse(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a text such as `data:2,fsdp:4` describes; an axis that it leaves out has size 1.

    Size -1 is what the other axes leave; the empty text is `data:-1`, every device. A mesh of fewer devices
    than there are takes the first of them. `devices` are all of JAX's unless given, those of every process.

    Raises UserError for an unknown or repeated axis, for a size that is neither a positive number nor -1, for
    more than one -1, for sizes that the devices do not fill, and for a process without a device.

    >>> dict(parse("data:1").shape)
    {'data': 1, 'fsdp': 1, 'sequence': 1, 'tensor': 1}
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = dict.fromkeys(AXES, 1) | _sizes(text or "data:-1")
    known = math.prod(size for size in sizes.values() if size != -1)
    if known > count:
        largest = max(sizes, key=sizes.get)
        raise errors.UserError(f"mesh {text} needs {known} devices, there are {count}: {largest}:-1 uses them all")
    if -1 in sizes.values() and count % known:
        divisors = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise errors.UserError(f"mesh {text}: {count} devices do not divide by {known}, only by {divisors}")
    shape = tuple(count // known if size == -1 else size for size in sizes.values())
    if len({device.process_index for device in devices[: math.prod(shape)]}) < jax.process_count():
        raise errors.UserError(f"mesh {text} leaves a process without a device: data:-1 takes all {count} devices")
    # Auto: placement stays outside the models and the compiler propagates it. JAX's default, Explicit, would
    # have every model say how its arrays are divided.
    auto = (AxisType.Auto,) * len(AXES)
    if math.prod(shape) < count:  # which need not be a torus
        return Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), AXES, axis_types=auto)
    # jax.make_mesh would refuse a mesh whose axes are not those of a TPU's torus: here an axis may be part of one.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=auto)


def within(mesh: Mesh, function: Callable) -> Callable:
    """The function, traced with the mesh at hand for layers that say how an array lies on it."""

    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis divided over data x fsdp: (B, ...) is (B / (data fsdp), ...) on each device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_here(mesh: Mesh, size: int) -> np.ndarray:
    """Which of `size` rows, divided as a batch, lie on devices of this process: (n,) int, in order.

    >>> rows_here(parse("data:1"), 4)
    array([0, 1, 2, 3])
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[rows] for (rows,) in slices]))


def assemble(here: np.ndarray, rows: np.ndarray, size: int, sharding: NamedSharding, axis: int = 0) -> jax.Array:
    """An array over all processes, of which each brings what its own devices hold along an axis.

    Args:
      here: (..., n, ...), this process's rows.
      rows: their numbers, (n,) int, as `rows_here` has them.
      size: the rows of all processes.
      sharding: of the whole, which divides no other axis.
      axis: of the rows.
    """

    def part(index):
        start, stop, _ = index[axis].indices(size)
        first = int(np.searchsorted(rows, start))
        return here[(slice(None),) * axis + (slice(first, first + stop - start),)]

    return _placed((*here.shape[:axis], size, *here.shape[axis + 1 :]), sharding, part)


def whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """An array that every process has, on every device, without a word between them."""
    return _placed(array.shape, replicated(mesh), lambda index: array[index])


def _placed(shape: tuple[int, ...], sharding: NamedSharding, part: Callable) -> jax.Array:
    """`jax.make_array_from_callback`, whose transfers jax_transfer_guard takes for implicit ones."""
    indices = sharding.addressable_devices_indices_map(shape)
    parts = [jax.device_put(part(index), device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def beside(tree, array: jax.Array):
    """A tree of arrays of the host's, whole on every device on which an array lies."""
    there = array.sharding
    return jax.device_put(tree, replicated(there.mesh) if isinstance(there, NamedSharding) else there)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Inside `jax.jit`, divides the leading axis of every array as `batch_sharding`; free on one device.

    A step that takes its rows from a replicated data set needs this: nothing else tells the compiler to
    divide the work, and every device would do all of it. Each then picks its own rows, with no exchange.
    """
    return jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))


def check_jit(mesh: Mesh) -> None:
    """Raises UserError for several devices where jit is disabled: XLA divides compiled programs, not operations.

    >>> check_jit(parse("data:1"))
    """
    if jax.config.jax_disable_jit and mesh.size > 1:
        raise errors.UserError(f"jax_disable_jit is for one device, not {mesh.size}; unset it, or use the mesh data:1")


def check_model(model: object, mesh: Mesh) -> None:
    """Raises UserError for an axis `sequence` and a model that would do all of its work on every device of it.

    >>> check_model(None, parse("data:1"))
    """
    size = mesh.shape["sequence"]
    if size > 1 and not getattr(model, "divides_positions", False):
        name = "this model" if model is None else type(model).__name__
        raise errors.UserError(f"sequence:{size} divides the positions of GPT, not of {name}: give its devices to data")


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is divided into: data x fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError, with what would do, unless data x fsdp divides each of the `accumulate` parts of a batch.

    >>> check_batch_size(64, parse("data:1"), accumulate=4)
    """
    devices = batch_parts(mesh)
    if batch_size > 0 and batch_size % (devices * accumulate) == 0:
        return
    each, rest = divmod(batch_size, devices)
    if each and not rest:  # then fewer parts will do
        remedy = f"accumulate {max(n for n in range(1, accumulate) if each % n == 0)}"
    else:
        below = batch_size // (devices * accumulate) * devices * accumulate
        remedy = " or ".join(str(size) for size in (below, below + devices * accumulate) if size > 0)
    parts = f" in accumulate = {accumulate} parts" if accumulate > 1 else ""
    raise errors.UserError(
        f"batch_size {batch_size}{parts} does not divide over data x fsdp = {devices} devices: {remedy} would"
    )


def _sizes(text: str) -> dict[str, int]:
    """`axis:size,...` as a dict, each axis known and named once, each size positive or the only -1."""
    sizes = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition(":"))
        if axis not in AXES:
            raise errors.unknown("mesh axis", axis, AXES)
        if axis in sizes:
            raise errors.UserError(f"mesh {text} names {axis} twice: once is enough")
        if size != "-1" and not (size.isdecimal() and int(size) > 0):
            raise errors.UserError(
                f"mesh {text}: {axis} must be a whole number from 1, or -1 for the rest, as in {axis}:2"
            )
        sizes[axis] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise errors.UserError(f"mesh {text}: only one axis can be -1, the rest of the devices")
    return sizes
