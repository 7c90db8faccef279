"""Checkpoints of the whole state: asynchronous, atomic, and verified bit for bit when they are read.

stored.py defines the files of one checkpoint, reading.py reads one, listing.py lists a directory of them, and
restoring.py chooses the one to restore.

One run writes to a directory; any number of readers may work there at any time, and a reader changes nothing. Each of
several processes writes and reads what its devices hold, in a directory that all of them see. Process 0 lists the
checkpoints; all processes decide together whether one is intact.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
from absl import logging

from deeplearn.errors import UserError
from deeplearn.files import in_bucket, locate, remove_tree
from deeplearn.parallel import processes
from deeplearn.training import leaves, listing, orbax_errors, reading, restoring, stored
from deeplearn.training.fingerprint import fingerprints


@dataclasses.dataclass
class Manager:
    """An open directory of checkpoints, made by `open`; as a context manager, it closes at the end.

    Fields:
      directory: absolute path.
      keep: how many of the newest checkpoints stay, beside the best.
      mode: whether the best metric is the "min" or the "max".
      handler: Orbax's, which reads and writes.
      checkpointer: Orbax's, which owns the writing thread.
      identity: of the run, None if it is not to be checked.
      accepted: other identities whose checkpoints may be restored and deleted.
      damaged: names of checkpoints that are proven damaged: they are ignored, and saving them again replaces them.
      saving: step of the checkpoint that is being written.
    """

    directory: pathlib.Path
    keep: int
    mode: str
    handler: Any
    checkpointer: Any
    identity: str | None = None
    accepted: Collection[str | None] = ()
    damaged: set[str] = dataclasses.field(default_factory=set)
    saving: int | None = None

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *error) -> None:
        close(self)


Restored = restoring.Restored


def open(
    directory: str | os.PathLike,
    keep: int = 2,
    mode: str = "min",
    identity: str | None = None,
    accepted: Collection[str | None] = (),
) -> Manager:
    """Open a directory of checkpoints, which the first save makes if need be.

    Args:
      directory: where they are; one writer at a time (`manifest.lock` ensures that), any number of readers.
      keep: how many of the newest to keep, at least 1, in addition to the best by metric.
      mode: "min" or "max", which metric is the best.
      identity: of the run: what determines its numbers, in any form. It is saved with each checkpoint, and a
        checkpoint with another one is not restored and not deleted. None: any identity is accepted.
      accepted: other identities to accept; None among them stands for checkpoints that have none.
    """
    import orbax.checkpoint as ocp

    if keep < 1 or mode not in ("min", "max"):
        raise ValueError(f"keep must be at least 1 and mode min or max, not {keep} and {mode!r}")
    directory = locate(directory)
    directory = directory if in_bucket(directory) else directory.absolute()
    orbax_errors.quieten()
    # Measured on 1 MB in 60 arrays: OCDBT writes 15 files, plain Zarr 125; compression takes 7 % off.
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False),
        record=ocp.JsonCheckpointHandler(filename="record.json"),
    )
    return Manager(directory, keep, mode, handler, ocp.AsyncCheckpointer(handler), identity, accepted)


@jax.transfer_guard("allow")  # to write a file is to transfer arrays, here and in Orbax
def save(manager: Manager, step: int, state: Any, metadata: dict[str, Any], metric: float | None = None) -> bool:
    """Start to save `state`, and return as soon as the caller may donate it: a thread goes on writing.

    Before that it waits for the previous save.

    Args:
      manager: from `open`.
      step: the state's step.
      state: any tree of arrays, sharded or not, and PRNG keys. NumPy arrays and Python numbers are saved as
        `jnp.asarray` makes them.
      metadata: what `strict_json.encode` takes; comes back with the state.
      metric: the value that the best is chosen by; None and a number that is not finite are never the best.

    Returns:
      False, having saved nothing, if one of the parameters (what lies under `params`, or the whole of a state
      without that) is not finite. True otherwise, also if this very state with this metric is there already.

    Raises:
      UserError: this save or the previous one failed (a full disk, say); what was there stays.
    """
    import orbax.checkpoint as ocp

    named = leaves.named(state)
    arrays = {name: leaves.data(leaf) for name, leaf in named.items()}
    prints = fingerprints(arrays)
    parameters = [name for name in prints if name.split("/")[0] == "params"] or prints
    if not all(prints[name].finite for name in parameters):
        return False

    metric = None if metric is None or not math.isfinite(metric) else float(metric)
    record = stored.make_record(step, metric, metadata, named, prints, manager.identity)
    path = manager.directory / stored.name_of(record)

    wait(manager)
    with _writing(manager, step):
        manager.directory.mkdir(parents=True, exist_ok=True)
        name, present = processes.decided([path.name, _presence(path) if processes.is_main() else None])
        path = manager.directory / name
        if present == reading.DAMAGED:
            manager.damaged.add(name)
        if present == reading.INTACT and name not in manager.damaged:
            return True
        if in_bucket(path):
            stored.clear(path)
        manager.saving = step
        written = {name: leaf for name, leaf in arrays.items() if leaf.size}  # Orbax refuses empty arrays
        manager.checkpointer.save(
            path,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(written),
                record=ocp.args.JsonSave(stored.sealed(record)),
            ),
            force=path.name in manager.damaged and not in_bucket(path),
        )
        manager.damaged.discard(path.name)
    return True


def wait(manager: Manager) -> None:
    """Wait until the last save is on disk, and delete what is then neither among the newest nor the best.

    Process 0 deletes, before it lists checkpoints for all processes.

    Raises:
      UserError: the save failed, or old checkpoints cannot be listed or deleted.
    """
    step, manager.saving = manager.saving, None
    with _writing(manager, step):
        manager.checkpointer.wait_until_finished()
    if step is not None and processes.is_main():
        _prune(manager)


def close(manager: Manager) -> None:
    """Wait as `wait` does, and free the threads.

    Raises:
      UserError: the last save failed.
    """
    try:
        wait(manager)
    finally:
        manager.checkpointer.close()


def steps(manager: Manager) -> list[int]:
    """The steps, in order, of this run's checkpoints that are there and not known to be damaged.

    Raises:
      UserError: they cannot be listed.
    """
    checkpoints = listing.listed(manager.directory)
    intact = [
        c
        for c in checkpoints
        if not c.damage and c.name not in manager.damaged and restoring.is_ours(manager, c.identity)
    ]
    return sorted({checkpoint.step for checkpoint in intact})


def restore_latest(manager: Manager, abstract_state: Any) -> Restored | None:
    """The newest intact checkpoint, or None; each one that is proven damaged is skipped with a warning of one line.

    Args:
      manager: from `open`.
      abstract_state: a tree like the saved one, of `jax.ShapeDtypeStruct` or arrays. The restored arrays get
        its shardings (where it has none, the default device), whatever sharding they were saved with.

    Raises:
      UserError: a checkpoint is of another run or another model (says which array differs first), or it cannot be
        read and is not proven damaged. Nothing was changed.
    """
    wait(manager)
    restored = restoring.restore(manager, abstract_state, lambda checkpoints: checkpoints[::-1])
    if restored is None and manager.damaged:
        logging.warning(
            "no checkpoint in %s is intact; a run there starts again at step 0, and deletes a damaged checkpoint only "
            "after it has passed its step",
            manager.directory,
        )
    if restored is None:
        return None
    return restored._replace(damaged=tuple(step for step in restored.damaged if step > restored.step))


def restore_best(manager: Manager, abstract_state: Any) -> Restored | None:
    """The intact checkpoint with the best metric, the earliest of equals; otherwise as `restore_latest`.

    `damaged` of what it returns tells whether a better one may have been lost.
    """
    wait(manager)
    return restoring.restore(manager, abstract_state, lambda checkpoints: listing.best_first(checkpoints, manager.mode))


def _presence(path: pathlib.Path) -> str | None:
    """Whether a checkpoint is there already, INTACT or DAMAGED as far as its record says."""
    if not stored.is_complete(path):
        return None
    try:
        stored.read_record(path)
    except stored.Damaged:
        return reading.DAMAGED
    return reading.INTACT


def _prune(manager: Manager) -> None:
    """Delete what is not kept, and what interrupted saves left."""
    ours = functools.partial(restoring.is_ours, manager)
    kept = listing.to_keep(listing.listed(manager.directory), manager.keep, manager.mode, manager.damaged, ours)
    try:
        for path in listing.paths(manager.directory):
            if stored.NAME.fullmatch(path.name) and path.name not in kept:
                path = stored.set_aside(path)  # in one step, so that readers never see half of it
            if any(suffix in path.name for suffix in stored.UNFINISHED):
                # Files that readers hold open cannot be deleted on network disks; the next save tries again.
                remove_tree(path, ignore_errors=True)
    except Exception as error:
        if not orbax_errors.is_io(error):
            raise
        cause = orbax_errors.cause(error)
        raise UserError(
            f"cannot delete old checkpoints in {manager.directory}: {cause}; the newest is saved"
        ) from error


@contextlib.contextmanager
def _writing(manager: Manager, step: int | None) -> Iterator[None]:
    """Turn a failure to write into a UserError of one line, whatever Orbax raises for it."""
    try:
        yield
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if not orbax_errors.is_io(error):
            raise
        manager.saving = None
        _remove_unfinished(manager)
        raise UserError(
            f"cannot save the checkpoint of step {step} in {manager.directory}: {orbax_errors.cause(error)}; "
            f"{_what_is_kept(manager)}: put that right and run the same command again"
        ) from error


def _remove_unfinished(manager: Manager) -> None:
    with contextlib.suppress(Exception):  # the failure to write is what the user must know
        for path in manager.directory.glob(f"*{stored.UNFINISHED[0]}*"):
            remove_tree(path, ignore_errors=True)  # what filled the disk must not stay there


def _what_is_kept(manager: Manager) -> str:
    try:
        last = max(steps(manager), default=None)
    except UserError:  # the failure to write is what the user must know
        return "no earlier one was changed"
    return "there is no earlier one" if last is None else f"that of step {last} is kept"
