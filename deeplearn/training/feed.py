"""How examples reach the program: resident on the device and gathered there, or streamed by the host."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from deeplearn.data import order, sources, splits
from deeplearn.parallel import mesh as meshes
from deeplearn.training.state import ORDER, key

EVALUATE_BLOCK = 10_000  # rows of a streamed split on the device at once


class Feed(NamedTuple):
    """The two halves of it: `data` on the host's side, `batch_of` inside the program.

    Fields:
      data: `(step, steps) -> data`, what the program needs for `steps` batches from `step` on.
      batch_of: `(state, data) -> (i -> batch)`; batch i is that of step `state.step + i`.
      blocks: `split name -> iterator of {name: (n, ...)}`, the split in as few pieces as fit.
      abstract: `steps -> data`, the shapes, dtypes and shardings of what `data` gives; nothing is read onto a device.
      length: `data -> int`, how many batches there are at most in it: an index beyond gives the last one again.
    """

    data: Callable[[int, int], Any]
    batch_of: Callable[[Any, Any], Callable[[Any], dict]]
    blocks: Callable[[str], Iterator[dict]]
    abstract: Callable[[int], Any]
    length: Callable[[Any], int]


def indices(rng, step, batch_size: int, length: int, size: int):
    """Which examples the batches of the steps from `step` on hold, (length, B) int32; see deeplearn.data.order."""
    return order.chunk_indices(jax.random.fold_in(rng, ORDER), step, length, batch_size, size)


def gather(batch_size: int, length: int, constrain=lambda batch: batch):
    """The `batch_of` of data on the device, for chunks of at most `length` steps."""

    def batch_of(state, data):
        size = jax.tree.leaves(data)[0].shape[0]
        rows = indices(state.rng, state.step, batch_size, length, size)
        return lambda i: constrain({name: x[rows[i]] for name, x in data.items()})

    return batch_of


def resident(data: splits.Data, batch_size: int, length: int, mesh) -> Feed:
    """Every split whole on every device: an epoch costs the host nothing."""
    held = {}

    def on_device(split):
        if split not in held:
            held[split] = {name: meshes.whole(x, mesh) for name, x in data.split(split).arrays.items()}
        return held[split]

    return Feed(
        data=lambda step, steps: on_device("train"),
        batch_of=gather(batch_size, length, lambda batch: meshes.constrain_batch(batch, mesh)),
        blocks=lambda split: iter([on_device(split)]),
        abstract=lambda steps: {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh))
            for name, x in data.train.arrays.items()
        },
        length=lambda data: length,
    )


def streamed(data: splits.Data, seed: int, batch_size: int, mesh) -> Feed:
    """Batches read by threads ahead of the step that wants them; each process reads its own rows only."""
    order_key = jax.jit(lambda: jax.random.fold_in(key(seed), ORDER))()
    rows, parts = meshes.rows_here(mesh, batch_size), meshes.batch_parts(mesh)
    divided = NamedSharding(mesh, PartitionSpec(None, meshes.BATCH_AXES))
    together = jax.jit(
        lambda block, size: {name: x[:size] for name, x in block.items()},
        static_argnums=1,
        out_shardings=meshes.replicated(mesh),
    )
    reading = {"step": -1, "batches": iter(())}

    def read(step, steps):
        if reading["step"] != step:
            batches = sources.stream(data.train, order_key, batch_size, start_step=step, rows=rows)
            reading.update(step=step, batches=batches)
        taken = [next(reading["batches"]) for _ in range(steps)]
        reading["step"] += steps
        stacked = {name: np.stack([batch[name] for batch in taken]) for name in taken[0]}  # (steps, B, ...)
        return {name: meshes.assemble(x, rows, batch_size, divided, axis=1) for name, x in stacked.items()}

    def blocks(split):
        source = data.split(split)
        for start in range(0, len(source), EVALUATE_BLOCK):
            size = min(EVALUATE_BLOCK, len(source) - start)
            filled = -(-size // parts) * parts  # with copies of the last row, which go again
            here = meshes.rows_here(mesh, filled)
            read = source.__getitems__(start + np.minimum(here, size - 1))
            at = meshes.batch_sharding(mesh)
            yield together({name: meshes.assemble(x, here, filled, at) for name, x in read.items()}, size)

    return Feed(
        data=read,
        batch_of=lambda state, data: lambda i: meshes.constrain_batch({name: x[i] for name, x in data.items()}, mesh),
        blocks=blocks,
        abstract=lambda steps: {
            name: jax.ShapeDtypeStruct((steps, batch_size, *x.shape), x.dtype, sharding=divided)
            for name, x in data.spec.items()
        },
        length=lambda data: jax.tree.leaves(data)[0].shape[0],
    )
