"""The files of one checkpoint: its name, its record, and whether they are what was written.

A checkpoint is a directory `STEP-ID`, which Orbax writes under a temporary name and renames when it is complete.
It holds the arrays, by their path in the state, in `state/`, and `record/record.json`: step, metric, the identity of
the run, the caller's metadata, and the shape, dtype and fingerprint of every array. Buckets have no atomic rename:
there Orbax writes in place and adds `commit_success.txt` last; without that file it is not a checkpoint.

A checkpoint may be deleted by its writer while others read it. Therefore a read has four results: the content,
`Vanished`, `Damaged` (all of it was read, and it is wrong), or the error of a read that failed, which proves nothing.
"""

import json
import pathlib
import re
import time
import zlib
from typing import Any

import jax

from deeplearn import files, strict_json
from deeplearn.errors import UserError
from deeplearn.files import in_bucket, remove_tree
from deeplearn.parallel import processes
from deeplearn.training import leaves, orbax_errors
from deeplearn.training.fingerprint import Fingerprint, fingerprints

NAME = re.compile(r"(\d{9,})-[0-9a-f]{8}")
UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")
_COMMITTED = "commit_success.txt"
_BLOCK = 1 << 20  # bytes


class Damaged(Exception):
    """All of it was read, and it is not what was written; says what is wrong."""


class Vanished(Exception):
    """It was deleted after it was listed."""


def make_record(
    step: int,
    metric: float | None,
    metadata: dict[str, Any],
    named: dict[str, Any],
    prints: dict[str, Fingerprint],
    identity: str | None = None,
) -> dict[str, Any]:
    """The record of a state.

    Args:
      step: the state's step.
      metric: the value that the best checkpoint is chosen by.
      metadata: the caller's, what `strict_json.encode` takes.
      named: the arrays by path, from `leaves.named`.
      prints: the fingerprints of the arrays.
      identity: of the run.

    Returns:
      The record as it will be read, so that its checksum is that of what is read.
    """
    record = {
        "step": int(step),
        "metric": metric,
        "identity": identity,
        "metadata": strict_json.encode(metadata),
        "leaves": {name: [*leaves.spec(leaf), *prints[name].sums] for name, leaf in named.items()},
    }
    return json.loads(json.dumps(record, allow_nan=False))


def name_of(record: dict[str, Any]) -> str:
    """The name of a checkpoint, from its content: the same in every process, and different for different content."""
    content = [record["step"], record["metric"], record["leaves"]]
    if record.get("identity") is not None:  # older records have none
        content.append(record["identity"])
    return f"{record['step']:09d}-{_checksum(content):08x}"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The content of `record.json`."""
    return {"record": record, "checksum": _checksum(record)}


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """The record of the checkpoint at `path`.

    Raises:
      Damaged: the record is missing or wrong, or belongs to another checkpoint.
      Vanished: the checkpoint was deleted meanwhile.
      OSError: it cannot be read; in a bucket any other exception too.
    """
    file = path / "record" / "record.json"
    try:
        data = files.read_bytes(file)
    except Exception as error:
        if not is_complete(path):  # a deleted file on a network disk is a stale handle
            raise Vanished(path.name) from error
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)) or _is_link((path, path / "record", file)):
            raise
        raise Damaged("its record is missing") from error
    try:
        content = json.loads(data.decode())
        record = content["record"]
        intact = content["checksum"] == _checksum(record)
        name = name_of(record) if intact else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("its record is not what was written") from error
    if not intact:
        raise Damaged("its record is not what was written")
    if name != path.name:
        raise Damaged(f"its record belongs to {name}")
    return record


def check_same_model(path: pathlib.Path, record: dict[str, Any], abstract_state: Any) -> None:
    """Raise a UserError, with the first array that differs, if the checkpoint is of another model."""
    here = {name: leaves.spec(leaf) for name, leaf in leaves.named(abstract_state).items()}
    there = {name: (shape, dtype) for name, (shape, dtype, *_) in record["leaves"].items()}
    for name in here | there:
        if here.get(name) != there.get(name):
            mine, its = ("{1}{0}".format(*spec[name]) if name in spec else "absent" for spec in (here, there))
            raise UserError(
                f"the checkpoint {path} is of another model: {name} is {its} there and {mine} here; "
                "choose another --workdir, or the config that it was trained with"
            )


def altered(record: dict[str, Any], data: dict[str, jax.Array]) -> str | None:
    """The first array that is not what was written, in a few words; None if all are."""
    for name, fingerprint in fingerprints(data).items():
        if list(fingerprint.sums) != record["leaves"][name][2:]:
            return f"{name} is not what was written"
    return None


def is_complete(path: pathlib.Path) -> bool:
    """Whether the checkpoint exists and all of it was written."""
    return (path / _COMMITTED).exists() if in_bucket(path) else path.is_symlink() or path.exists()


def read_through(path: pathlib.Path) -> None:
    """Read every byte of a checkpoint, to see that nothing but its content is wrong.

    Raises:
      OSError: something that is listed cannot be read; in a bucket any other exception too.
    """
    if path.is_dir():
        for child in path.iterdir():
            read_through(child)
    else:
        with path.open("rb") as file:
            while file.read(_BLOCK):
                pass


def unreadable(path: pathlib.Path, error: BaseException) -> UserError:
    """The error for a checkpoint that cannot be read and is not proven damaged."""
    code = orbax_errors.os_error_code(error)
    error = OSError(code, orbax_errors.cause(error)) if code else error
    return files.unreadable(
        f"the checkpoint {path}", error, "start again when it can be read, or move the checkpoint away"
    )


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Make a checkpoint none any more, in one step, and return where its files are then, to be deleted."""
    if not in_bucket(path):
        return path.rename(f"{path}{UNFINISHED[1]}.{time.time_ns()}")  # the files of an earlier one may still be there
    (path / _COMMITTED).unlink(missing_ok=True)
    remove_tree(path)
    return path


def clear(path: pathlib.Path) -> None:
    """Remove what an interrupted save left in a bucket, before any process writes there."""
    if processes.is_main() and path.exists():
        remove_tree(path)
    processes.gathered(None)


def written(path: pathlib.Path) -> int:
    """When the checkpoint was completed, in nanoseconds.

    Raises:
      OSError: it was deleted, or cannot be read.
    """
    return int((path / _COMMITTED).stat().mtime * 1e9) if in_bucket(path) else path.stat().st_mtime_ns


def _is_link(paths: tuple[pathlib.Path, ...]) -> bool:
    """Whether a path is a link, whose target may be on a disk that is not mounted."""
    return not in_bucket(paths[0]) and any(path.is_symlink() for path in paths)


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
