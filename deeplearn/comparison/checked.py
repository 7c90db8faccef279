"""JSON files with a checksum of their content: reading them gives the content, or one line that says what is wrong."""

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deeplearn.errors import UserError
from deeplearn.files import read_bytes, replacing, writing


class Damaged(Exception):
    """A file whose content is not what was written; the caller knows the remedy."""


def write(file: Path, key: str, content: Any) -> None:
    """Write `{key: content, "checksum": ...}`, atomically, and the directory if it is not there."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({key: content, "checksum": checksum(content)}, allow_nan=False) + "\n")


def read(file: Path, key: str) -> Any:
    """The content of a file that `write` wrote.

    Raises:
      UserError: the file cannot be read now; it may be intact.
      Damaged: the file is not what was written.
    """
    with reading(file):
        data = read_bytes(file)
    try:
        whole = json.loads(data.decode())
        content, stored = whole[key], whole["checksum"]
        # Records of before 2026 have a CRC-32, a number.
        expected = checksum(content) if isinstance(stored, str) else zlib.crc32(canonical(content))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(file) from error
    if type(stored) not in (int, str) or stored != expected:
        raise Damaged(file)
    return content


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn the system's refusal to read into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise UserError(f"cannot read {path}: {cause}; put that right and run the same command again") from error


def canonical(content: Any) -> bytes:
    """The one JSON text of a content."""
    return json.dumps(content, sort_keys=True).encode()


def checksum(content: Any) -> str:
    """The SHA-256 of a content's canonical JSON."""
    return hashlib.sha256(canonical(content)).hexdigest()


def is_number(value: Any, whole: bool = False) -> bool:
    """Whether a JSON value is a finite number, or a whole one that fits into 64 bits.

    >>> is_number(1.5), is_number(True), is_number(1.5, whole=True), is_number(float("nan"))
    (True, False, False, False)
    """
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return not whole and type(value) is float and math.isfinite(value)


def is_point(value: Any) -> bool:
    """Whether a JSON value holds hyperparameters: {name: number}."""
    return isinstance(value, dict) and all(map(is_number, value.values()))
