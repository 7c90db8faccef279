"""Checkpoints of the whole state: asynchronous, atomic, and verified bit for bit when they are read.

A checkpoint is a directory `STEP-ID`, which Orbax writes under another name and renames once it is whole.
It holds the arrays, by their path in the state, in `state/`, and `record/record.json`: step, metric, the
caller's metadata, and the shape, dtype and fingerprint of every array. In a bucket, where nothing is renamed at once,
Orbax writes it in its place, and `commit_success.txt` last of all: without that file it is none.

Of several processes each writes and reads what its devices hold, in a directory that all of them see; which checkpoint,
and whether it is intact, they decide together.
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging as python_logging
import math
import os
import pathlib
import re
import sys
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from deeplearn.errors import UserError
from deeplearn.files import in_bucket, locate, remove_tree
from deeplearn.parallel import processes
from deeplearn.training import leaves
from deeplearn.training.fingerprint import fingerprints

_NAME = re.compile(r"(\d{9,})-[0-9a-f]{8}")
_COMMITTED = "commit_success.txt"
_UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")


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


class _Checkpoint(NamedTuple):
    step: int
    metric: float | None
    name: str
    written: int  # nanoseconds


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
    # A thread of Orbax's that fails logs its traceback, several times; `_writing` says the same in one line.
    logging.get_absl_logger().addFilter(_not_from_an_orbax_thread)
    asyncio.set_event_loop_policy(_Policy())
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

    record = {
        "step": int(step),
        "metric": None if metric is None or math.isnan(metric) else float(metric),
        "metadata": metadata,
        "leaves": {name: [*leaves.spec(leaf), *prints[name].sums] for name, leaf in named.items()},
    }
    record = json.loads(json.dumps(record))  # as it will be read, so that its checksum is that of what is read
    # Named by its content: the same in every process, and never in the place of a different checkpoint.
    identity = _checksum([record["step"], record["metric"], record["leaves"]])
    path = manager.directory / f"{step:09d}-{identity:08x}"

    wait(manager)
    with _writing(manager, step):
        manager.directory.mkdir(parents=True, exist_ok=True)  # if something removed it meanwhile
        name, there = processes.decided([path.name, _is_whole(path)])
        path = manager.directory / name
        if there and name not in manager.damaged:
            return True
        if in_bucket(path):
            _clear(path)
        manager.saving = step
        written = {name: leaf for name, leaf in arrays.items() if leaf.size}  # Orbax refuses empty arrays
        manager.checkpointer.save(
            path,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(written),
                record=ocp.args.JsonSave({"record": record, "checksum": _checksum(record)}),
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


def _restore(manager: Manager, abstract_state: Any, checkpoints: Iterable[_Checkpoint]) -> Restored | None:
    for name in processes.decided([checkpoint.name for checkpoint in checkpoints]):
        path = manager.directory / name
        with _quiet_coroutines():
            damage = None
            try:
                record = _read_record(path)
                _check_same_model(path, record, abstract_state)
                data = _read_arrays(manager, path, abstract_state)
            except (UserError, MemoryError, jax.errors.JaxRuntimeError):  # the reader's trouble, no damage
                raise
            except Exception as error:  # there is no end to what damaged files make Orbax raise
                damage = _cause(error)
            # Before the fingerprints, which all processes take together.
            damage = next(filter(None, processes.gathered(damage)), None) or _altered(record, data)
            if damage is None:
                return Restored(_as_state(data, abstract_state), record["metadata"], record["step"])
            logging.warning("skipped the damaged checkpoint %s: %s", path, damage)
            manager.damaged.add(name)
            time.sleep(0.02)  # reads that nobody waits for any more end, and let go of their coroutines
            gc.collect()
    return None


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    content = json.loads((path / "record" / "record.json").read_text())
    if content["checksum"] != _checksum(content["record"]):
        raise ValueError("its record is not what was written")
    return content["record"]


def _read_arrays(manager: Manager, path: pathlib.Path, abstract_state: Any) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp
    from etils import epath

    abstract = {name: leaves.abstract_data(leaf) for name, leaf in leaves.named(abstract_state).items()}
    item = {name: leaf for name, leaf in abstract.items() if leaf.size}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=item, restore_args=restore_args))
    # Not by the checkpointer, which waits for all processes in the end, and in vain if one of them fails.
    return manager.handler.restore(epath.Path(path), args=args).state


def _altered(record: dict[str, Any], data: dict[str, jax.Array]) -> str | None:
    for name, fingerprint in fingerprints(data).items():
        if list(fingerprint.sums) != record["leaves"][name][2:]:
            return f"{name} is not what was written"
    return None


def _as_state(data: dict[str, jax.Array], abstract_state: Any) -> Any:
    restored = []
    for name, leaf in leaves.named(abstract_state).items():
        words = leaves.abstract_data(leaf)  # what was empty is not in the files
        array = data[name] if words.size else jnp.zeros(words.shape, words.dtype, device=words.sharding)
        restored.append(leaves.restore(leaf, array))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), restored)


def _check_same_model(path: pathlib.Path, record: dict[str, Any], abstract_state: Any) -> None:
    here = {name: leaves.spec(leaf) for name, leaf in leaves.named(abstract_state).items()}
    there = {name: (shape, dtype) for name, (shape, dtype, *_) in record["leaves"].items()}
    for name in here | there:
        if here.get(name) != there.get(name):
            mine, its = ("{1}{0}".format(*spec[name]) if name in spec else "absent" for spec in (here, there))
            raise UserError(
                f"the checkpoint {path} is of another model: {name} is {its} there and {mine} here; "
                "choose another --workdir, or the config that it was trained with"
            )


def _checkpoints(manager: Manager) -> list[_Checkpoint]:
    """The checkpoints not known to be damaged, by step; those with a metric behind those of the same step."""
    found = []
    for path in manager.directory.iterdir() if manager.directory.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name and path.name not in manager.damaged and _is_whole(path):
            try:
                metric = _read_record(path)["metric"]
            except (OSError, ValueError, KeyError, TypeError):  # the restore finds that, and says so
                metric = None
            found.append(_Checkpoint(int(name[1]), metric, path.name, _written(path)))
    return sorted(found, key=lambda c: (c.step, c.metric is not None, c.written))


def _best_first(manager: Manager, checkpoints: list[_Checkpoint]) -> list[_Checkpoint]:
    sign = {"min": 1, "max": -1}[manager.mode]
    return sorted((c for c in checkpoints if c.metric is not None), key=lambda c: sign * c.metric)


def _prune(manager: Manager) -> None:
    """Delete what is not kept; what is damaged only once the run has come past its step again."""
    checkpoints = _checkpoints(manager)
    newest = {checkpoint.step: checkpoint.name for checkpoint in checkpoints}
    kept = {*list(newest.values())[-manager.keep :]}
    kept |= {checkpoint.name for checkpoint in _best_first(manager, checkpoints)[:1]}
    for path in list(manager.directory.iterdir()):
        name = _NAME.fullmatch(path.name)
        ahead = path.name in manager.damaged and int(name[1]) > max(newest, default=-1)
        if name and path.name not in kept and not ahead:
            path = _set_aside(path)  # at once, so that none is ever half there
        if any(suffix in path.name for suffix in _UNFINISHED):
            remove_tree(path)


def _is_whole(path: pathlib.Path) -> bool:
    return (path / _COMMITTED if in_bucket(path) else path).exists()


def _written(path: pathlib.Path) -> int:
    return int((path / _COMMITTED).stat().mtime * 1e9) if in_bucket(path) else path.stat().st_mtime_ns


def _set_aside(path: pathlib.Path) -> pathlib.Path:
    """What is to be deleted, no longer a checkpoint, under the name that it then has."""
    if not in_bucket(path):
        return path.rename(f"{path}{_UNFINISHED[1]}")
    (path / _COMMITTED).unlink(missing_ok=True)
    remove_tree(path)
    return path


def _clear(path: pathlib.Path) -> None:
    """Remove what an interrupted save left in a bucket, before any process writes there."""
    if processes.is_main() and path.exists():
        remove_tree(path)
    processes.gathered(None)


@contextlib.contextmanager
def _writing(manager: Manager, step: int | None) -> Iterator[None]:
    """Make one line of a failure to write, whatever Orbax makes of it."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and not _os_error_code(error):
            raise
        manager.saving = None
        for path in manager.directory.glob(f"*{_UNFINISHED[0]}*"):
            remove_tree(path, ignore_errors=True)  # what filled the disk must not stay there
        last = max(steps(manager), default=None)
        kept = "there is no earlier one" if last is None else f"that of step {last} is kept"
        raise UserError(
            f"cannot save the checkpoint of step {step} in {manager.directory}: {_cause(error)}; {kept}: "
            "put that right and run the same command again"
        ) from error


def _os_error_code(error: BaseException) -> int | None:
    """The errno in an OSError, or in the ValueError that TensorStore makes of one."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return getattr(error, "errno", None) or (int(code[1]) if code else None)


def _cause(error: BaseException) -> str:
    """The system's own words if it is the system's error, else the error's type and first line."""
    code = _os_error_code(error)
    return os.strerror(code) if code else f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _not_from_an_orbax_thread(record: python_logging.LogRecord) -> bool:
    return record.levelno < python_logging.ERROR or os.path.join("", "orbax", "") not in record.pathname


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets late news go: of a checkpoint's writes, those that fail after the first one, of which
    `_writing` tells, find it closed, or nobody who asks for them.
    """

    def call_soon_threadsafe(self, callback, *args, context=None):
        if not self.is_closed():
            return super().call_soon_threadsafe(callback, *args, context=context)

    def call_exception_handler(self, context):
        if "never retrieved" not in context["message"]:
            super().call_exception_handler(context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _Loop


@contextlib.contextmanager
def _quiet_coroutines() -> Iterator[None]:
    """Keep what a failed restore leaves behind from printing tracebacks when it is collected."""
    hook, asyncio_log = sys.unraisablehook, python_logging.getLogger("asyncio")
    sys.unraisablehook, asyncio_log.disabled = (lambda unraisable: None), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook, asyncio_log.disabled = hook, False


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
