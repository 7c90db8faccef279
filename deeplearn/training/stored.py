"""A checkpoint as it lies on disk or in a bucket: its name, its record, and whether it is what was written.

A checkpoint is a directory `STEP-ID`, which Orbax writes under another name and renames once it is whole.
It holds the arrays, by their path in the state, in `state/`, and `record/record.json`: step, metric, the
caller's metadata, and the shape, dtype and fingerprint of every array. In a bucket, where nothing is renamed at once,
Orbax writes it in its place, and `commit_success.txt` last of all: without that file it is none.
"""

import json
import pathlib
import re
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

import jax

from deeplearn.errors import UserError
from deeplearn.files import in_bucket, remove_tree
from deeplearn.parallel import processes
from deeplearn.training import leaves
from deeplearn.training.fingerprint import Fingerprint, fingerprints

NAME = re.compile(r"(\d{9,})-[0-9a-f]{8}")
UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")
_COMMITTED = "commit_success.txt"


class Checkpoint(NamedTuple):
    """One that is there."""

    step: int
    metric: float | None
    name: str
    written: int  # nanoseconds


def make_record(
    step: int, metric: float | None, metadata: dict[str, Any], named: dict[str, Any], prints: dict[str, Fingerprint]
) -> dict[str, Any]:
    """What is kept beside the arrays `named`, whose fingerprints are `prints`."""
    record = {
        "step": int(step),
        "metric": metric,
        "metadata": metadata,
        "leaves": {name: [*leaves.spec(leaf), *prints[name].sums] for name, leaf in named.items()},
    }
    return json.loads(json.dumps(record))  # as it will be read, so that its checksum is that of what is read


def name_of(record: dict[str, Any]) -> str:
    """By its content: the same in every process, and never in the place of a different checkpoint."""
    identity = _checksum([record["step"], record["metric"], record["leaves"]])
    return f"{record['step']:09d}-{identity:08x}"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The content of `record.json`."""
    return {"record": record, "checksum": _checksum(record)}


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """The record of the checkpoint at `path`.

    Raises:
      OSError, ValueError, KeyError or TypeError: it is damaged.
    """
    content = json.loads((path / "record" / "record.json").read_text())
    if content["checksum"] != _checksum(content["record"]):
        raise ValueError("its record is not what was written")
    return content["record"]


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
    """Which array is not what was written, in a few words; None if all are."""
    for name, fingerprint in fingerprints(data).items():
        if list(fingerprint.sums) != record["leaves"][name][2:]:
            return f"{name} is not what was written"
    return None


def found(directory: pathlib.Path, damaged: Collection[str] = ()) -> list[Checkpoint]:
    """The checkpoints not known to be damaged, by step; those with a metric behind those of the same step."""
    there = []
    for path in directory.iterdir() if directory.is_dir() else ():
        name = NAME.fullmatch(path.name)
        if name and path.name not in damaged and is_whole(path):
            try:
                metric = read_record(path)["metric"]
            except (OSError, ValueError, KeyError, TypeError):  # the restore finds that, and says so
                metric = None
            there.append(Checkpoint(int(name[1]), metric, path.name, _written(path)))
    return sorted(there, key=lambda c: (c.step, c.metric is not None, c.written))


def is_whole(path: pathlib.Path) -> bool:
    """Whether all of it was written."""
    return (path / _COMMITTED if in_bucket(path) else path).exists()


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """What is to be deleted, no longer a checkpoint, under the name that it then has."""
    if not in_bucket(path):
        return path.rename(f"{path}{UNFINISHED[1]}")
    (path / _COMMITTED).unlink(missing_ok=True)
    remove_tree(path)
    return path


def clear(path: pathlib.Path) -> None:
    """Remove what an interrupted save left in a bucket, before any process writes there."""
    if processes.is_main() and path.exists():
        remove_tree(path)
    processes.gathered(None)


def _written(path: pathlib.Path) -> int:
    return int((path / _COMMITTED).stat().mtime * 1e9) if in_bucket(path) else path.stat().st_mtime_ns


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
