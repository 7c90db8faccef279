"""Arrays that took long to make, kept in a file: atomically written, verified when read.

A cache file is a line with a format name and a SHA-256, a line of JSON with the dtype, the shape and the SHA-256 of
every array, and the bytes of the arrays. The SHA-256 of the first line covers the file's name and the second line, so
a flipped bit anywhere, a cut or extended file, and a file that was renamed are all detected before the data are used.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from deeplearn.files import check_regular

SUFFIX = ".arrays"

_FORMAT = b"deeplearn-arrays-1"
_LONGEST_LINE = 2**20  # bytes


class Damaged(Exception):
    """The content of a cache file is not what was written."""


def user_cache() -> Path:
    """The user's cache directory: `$XDG_CACHE_HOME/deeplearn`, `~/.cache/deeplearn` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deeplearn"


def writable(folder: Path) -> bool:
    """Whether files may be created in the folder; it is made where it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marked_read_only = not folder.stat().st_mode & 0o222  # a wish that root could ignore, and should not
    except OSError:
        return False
    return os.access(folder, os.W_OK) and not marked_read_only


def cached(file: str, folders: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in `file` in the first folder that has it; else `build()`, kept in the first writable folder.

    The file appears whole or not at all. A damaged file causes a warning and is replaced. A file that cannot be read
    (a fault of the disk, too many open files, a missing permission) may be intact: it causes a warning, the arrays are
    built again, and nothing is written to its folder. A full disk causes a warning.

    Args:
      file: the name of the file, ending in `SUFFIX`.
      folders: where to look for it, in this order.
      build: returns the arrays, {name: array of any shape and of a numeric or string dtype}.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> cached("squares.arrays", [folder], lambda: {"x": np.arange(4) ** 2})["x"]
    array([0, 1, 4, 9])
    >>> cached("squares.arrays", [folder], lambda: {})["x"]
    array([0, 1, 4, 9])
    """
    usable = []
    for folder in folders:
        try:
            return read(folder / file)
        except Damaged as error:
            logging.warning("%s is damaged (%s): making it again", folder / file, error)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it was not made yet
        except OSError as error:
            logging.warning("cannot read %s (%s): building its arrays without it", folder / file, error.strerror)
            continue
        usable.append(folder)
    arrays = build()
    folder = next((folder for folder in usable if writable(folder)), None)
    if folder:
        _write(folder / file, arrays)
    elif usable:
        logging.warning("cannot write %s to any of %s: it will be made each time", file, [*map(str, usable)])
    return arrays


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a cache file; raises `Damaged` unless every byte is as it was written, OSError if unreadable."""
    check_regular(path)
    with path.open("rb") as file:
        first, header = file.readline(_LONGEST_LINE), file.readline(_LONGEST_LINE)
        if first != _first_line(path.name, header):
            raise Damaged("its header does not have the expected SHA-256")
        arrays = {}
        for name, (dtype, shape, digest) in json.loads(header).items():
            arrays[name] = np.empty(shape, dtype)
            if file.readinto(raw(arrays[name])) < arrays[name].nbytes:
                raise Damaged("it is shorter than expected")
            if sha256(arrays[name]) != digest:
                raise Damaged(f"the array {name!r} does not have the expected SHA-256")
        if file.read(1):
            raise Damaged("it is longer than expected")
    return arrays


def raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a C-contiguous array, (bytes,) uint8, which share its memory."""
    return array.reshape(-1).view(np.uint8)


def sha256(array: np.ndarray) -> str:
    """The SHA-256 of the bytes of a C-contiguous array, 64 hexadecimal digits."""
    return hashlib.sha256(raw(array)).hexdigest()


def _first_line(name: str, header: bytes) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\n" + header).hexdigest()
    return _FORMAT + b" " + digest.encode() + b"\n"


def write_whole(path: Path, parts: Iterable[bytes | np.ndarray]) -> None:
    """Write a file that appears whole or not at all, also where several processes write it at the same time.

    A disk that is full, or any other OSError, causes a warning, and no file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        logging.warning("cannot write %s (%s): continuing without it", path, error)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    header = {name: (array.dtype.str, array.shape, sha256(array)) for name, array in arrays.items()}
    header = json.dumps(header).encode() + b"\n"
    write_whole(path, [_first_line(path.name, header), header, *map(raw, arrays.values())])
