"""Checkpoints of the whole state: asynchronous, atomic, and verified bit for bit when they are read.

What one is on disk is in stored.py; what Orbax says of files that it cannot read or write, in orbax_errors.py.

Of several processes each writes and reads what its devices hold, in a directory that all of them see; which checkpoint,
and whether it is intact, they decide together.
"""

import contextlib
import dataclasses
import gc
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from deeplearn.errors import UserError
from deeplearn.files import in_bucket, locate, remove_tree
from deeplearn.parallel import processes
from deeplearn.training import leaves, orbax_errors, stored
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
      damaged: names of checkpoints that failed to restore: they count for nothing, and saving them again
        replaces them.
      saving: step of the checkpoint that is being written.
    """

    directory: pathlib.Path
    keep: int
    mode: str
    handler: Any
    checkpointer: Any
    damaged: set[str] = dataclasses.field(default_factory=set)
    saving: int | None = None

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *error) -> None:
        close(self)


class Restored(NamedTuple):
    """A state read back, the metadata saved with it, and its step."""

    state: Any
    metadata: dict[str, Any]
    step: int


def open(directory: str | os.PathLike, keep: int = 2, mode: str = "min") -> Manager:
    """Open a directory of checkpoints, made if need be.

    Args:
      directory: where they are; one writer at a time (`manifest.lock` sees to that), any number of readers.
      keep: how many of the newest to keep, at least 1, beside the best by metric.
      mode: "min" or "max", which metric is the best.

    Raises:
      UserError: the directory cannot be made.
    """
    import orbax.checkpoint as ocp

    if keep < 1 or mode not in ("min", "max"):
        raise ValueError(f"keep must be at least 1 and mode min or max, not {keep} and {mode!r}")
    directory = locate(directory) if in_bucket(directory) else pathlib.Path(directory).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {directory}: {error.strerror}; choose another --workdir") from error
    orbax_errors.quieten()
    # Measured on 1 MB in 60 arrays: OCDBT writes 15 files, plain Zarr 125; compression takes 7 % off.
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False),
        record=ocp.JsonCheckpointHandler(filename="record.json"),
    )
    return Manager(directory, keep, mode, handler, ocp.AsyncCheckpointer(handler))


def save(manager: Manager, step: int, state: Any, metadata: dict[str, Any], metric: float | None = None) -> bool:
    """Start to save `state`, and return as soon as the caller may donate it: a thread goes on writing.

    Before that it waits for the previous save.

    Args:
      manager: from `open`.
      step: the state's step.
      state: any tree of arrays, sharded or not, and PRNG keys. NumPy arrays and Python numbers are saved as
        `jnp.asarray` makes them.
      metadata: what JSON can hold; comes back with the state.
      metric: the value that the best is chosen by; None or NaN is never the best.

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

    metric = None if metric is None or math.isnan(metric) else float(metric)
    record = stored.make_record(step, metric, metadata, named, prints)
    path = manager.directory / stored.name_of(record)

    wait(manager)
    with _writing(manager, step):
        manager.directory.mkdir(parents=True, exist_ok=True)  # if something removed it meanwhile
        name, there = processes.decided([path.name, stored.is_whole(path)])
        path = manager.directory / name
        if there and name not in manager.damaged:
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

    Raises:
      UserError: the save failed.
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
    """The steps, in order, of the checkpoints that are there and not known to be damaged."""
    return sorted({checkpoint.step for checkpoint in _checkpoints(manager)})


def restore_latest(manager: Manager, abstract_state: Any) -> Restored | None:
    """The newest checkpoint that is intact, or None; each damaged one is skipped with a warning of one line.

    Args:
      manager: from `open`.
      abstract_state: a tree like the saved one, of `jax.ShapeDtypeStruct` or arrays. The restored arrays get
        its shardings (where it has none, the default device), whatever sharding they were saved with.

    Raises:
      UserError: a checkpoint is of another model; says which array differs first.
    """
    wait(manager)
    return _restore(manager, abstract_state, reversed(_checkpoints(manager)))


def restore_best(manager: Manager, abstract_state: Any) -> Restored | None:
    """The intact checkpoint with the best metric, the earliest of equals; otherwise as `restore_latest`."""
    wait(manager)
    return _restore(manager, abstract_state, _best_first(manager, _checkpoints(manager)))


def _restore(manager: Manager, abstract_state: Any, checkpoints: Iterable[stored.Checkpoint]) -> Restored | None:
    for name in processes.decided([checkpoint.name for checkpoint in checkpoints]):
        path = manager.directory / name
        with orbax_errors.quiet_coroutines():
            damage = None
            try:
                record = stored.read_record(path)
                stored.check_same_model(path, record, abstract_state)
                data = _read_arrays(manager, path, abstract_state)
            except (UserError, MemoryError, jax.errors.JaxRuntimeError):  # the reader's trouble, no damage
                raise
            except Exception as error:  # there is no end to what damaged files make Orbax raise
                damage = orbax_errors.cause(error)
            # Before the fingerprints, which all processes take together.
            damage = next(filter(None, processes.gathered(damage)), None) or stored.altered(record, data)
            if damage is None:
                return Restored(_as_state(data, abstract_state), record["metadata"], record["step"])
            logging.warning("skipped the damaged checkpoint %s: %s", path, damage)
            manager.damaged.add(name)
            time.sleep(0.02)  # reads that nobody waits for any more end, and let go of their coroutines
            gc.collect()
    return None


def _read_arrays(manager: Manager, path: pathlib.Path, abstract_state: Any) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp
    from etils import epath

    abstract = {name: leaves.abstract_data(leaf) for name, leaf in leaves.named(abstract_state).items()}
    item = {name: leaf for name, leaf in abstract.items() if leaf.size}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=item, restore_args=restore_args))
    # Not by the checkpointer, which waits for all processes in the end, and in vain if one of them fails.
    return manager.handler.restore(epath.Path(path), args=args).state


def _as_state(data: dict[str, jax.Array], abstract_state: Any) -> Any:
    restored = []
    for name, leaf in leaves.named(abstract_state).items():
        words = leaves.abstract_data(leaf)  # what was empty is not in the files
        array = data[name] if words.size else jnp.zeros(words.shape, words.dtype, device=words.sharding)
        restored.append(leaves.restore(leaf, array))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), restored)


def _checkpoints(manager: Manager) -> list[stored.Checkpoint]:
    return stored.found(manager.directory, manager.damaged)


def _best_first(manager: Manager, checkpoints: list[stored.Checkpoint]) -> list[stored.Checkpoint]:
    sign = {"min": 1, "max": -1}[manager.mode]
    return sorted((c for c in checkpoints if c.metric is not None), key=lambda c: sign * c.metric)


def _prune(manager: Manager) -> None:
    """Delete what is not kept; what is damaged only once the run has come past its step again."""
    checkpoints = _checkpoints(manager)
    newest = {checkpoint.step: checkpoint.name for checkpoint in checkpoints}
    kept = {*list(newest.values())[-manager.keep :]}
    kept |= {checkpoint.name for checkpoint in _best_first(manager, checkpoints)[:1]}
    for path in list(manager.directory.iterdir()):
        name = stored.NAME.fullmatch(path.name)
        ahead = path.name in manager.damaged and int(name[1]) > max(newest, default=-1)
        if name and path.name not in kept and not ahead:
            path = stored.set_aside(path)  # at once, so that none is ever half there
        if any(suffix in path.name for suffix in stored.UNFINISHED):
            remove_tree(path)


@contextlib.contextmanager
def _writing(manager: Manager, step: int | None) -> Iterator[None]:
    """Make one line of a failure to write, whatever Orbax makes of it."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and not orbax_errors.os_error_code(error):
            raise
        manager.saving = None
        for path in manager.directory.glob(f"*{stored.UNFINISHED[0]}*"):
            remove_tree(path, ignore_errors=True)  # what filled the disk must not stay there
        last = max(steps(manager), default=None)
        kept = "there is no earlier one" if last is None else f"that of step {last} is kept"
        raise UserError(
            f"cannot save the checkpoint of step {step} in {manager.directory}: {orbax_errors.cause(error)}; {kept}: "
            "put that right and run the same command again"
        ) from error
