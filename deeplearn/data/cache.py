"""Arrays that took long to make, kept in a file: atomically written, verified when read."""

import os
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

_DAMAGED = (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError)


def user_cache() -> Path:
    """The user's cache directory: `$XDG_CACHE_HOME/deeplearn`, `~/.cache/deeplearn` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deeplearn"


def writable(folder: Path) -> bool:
    """Whether files may be created in the folder; it is made where it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    marked_read_only = not folder.stat().st_mode & 0o222  # a wish that root could ignore, and should not
    return os.access(folder, os.W_OK) and not marked_read_only


def cached(file: str, folders: Sequence[Path], build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in `file` (npz) in the first folder that has it; else `build()`, kept in the first writable one.

    The file appears whole or not at all. Zip keeps a checksum of every array: a file that is cut or altered is
    reported and made again. A disk that is full costs a warning, no more.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> cached("squares.npz", [folder], lambda: {"x": np.arange(4) ** 2})["x"]
    array([0, 1, 4, 9])
    >>> cached("squares.npz", [folder], lambda: {})["x"]
    array([0, 1, 4, 9])
    """
    for path in (folder / file for folder in folders):
        if path.exists():
            try:
                with np.load(path) as arrays:
                    return dict(arrays)
            except _DAMAGED as error:
                logging.warning("%s is damaged (%s): making it again", path, error)
    arrays = build()
    folder = next((folder for folder in folders if writable(folder)), None)
    if folder is None:
        logging.warning("cannot write %s to any of %s: it will be made each time", file, [*map(str, folders)])
    else:
        _write(folder / file, arrays)
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        logging.warning("cannot write %s (%s): it will be made each time", path, error)
