"""Whether the files of a prepared TFDS directory are what was written.

ArrayRecord verifies a hash of every block of records that it reads, but nothing covers the descriptions beside the
records. The directories that this library prepares hold `checksums.json`: the size and the SHA-256 of every file.
It is checked before a file is used.

TFDS writes no checksums, so in a directory that it prepared only what is said twice can be checked: the number and the
size of a split's records, the number and uniqueness of the class names, the shape of the images, the range of the
labels. What is said once cannot: a changed letter in a class name is not detected there. Once such a data set was
decoded, the cache file holds a verified copy of all of it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deeplearn.data.cache import write_whole
from deeplearn.errors import UserError
from deeplearn.files import check_regular, read_bytes

CHECKSUMS = "checksums.json"
REMEDY = "restore the file, or delete its directory and prepare the data set again"

_DESCRIPTIONS = ("*.json", "*.txt")
_RECORDS = "*.array_record*"
_READ_AT_ONCE = 1000


def record(folder: Path) -> None:
    """Write the checksums of a directory that has just been prepared; a disk that is full causes a warning."""
    paths = sorted(path for pattern in (*_DESCRIPTIONS, _RECORDS) for path in folder.glob(pattern))
    written = [path for path in paths if path.name != CHECKSUMS and not path.name.startswith(".")]
    sums = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in written}
    write_whole(folder / CHECKSUMS, [_serialized(sums)])


def verify(name: str, folder: Path, *, records: bool) -> None:
    """Check the files of a prepared directory against its `checksums.json`, if it has one.

    Args:
      name: the data set's name, for messages.
      folder: the directory of the version.
      records: check the files of records, too: 0.1 s for 150 MB. The descriptions always are.

    Raises:
      UserError: a file is damaged, missing or unreadable.
    """
    try:
        content = read_bytes(folder / CHECKSUMS)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(name, folder / CHECKSUMS, error) from error
    for file, expected in _parsed(name, folder / CHECKSUMS, content).items():
        path = folder / file
        if records or not path.match(_RECORDS):
            try:
                intact = path.stat().st_size == expected["bytes"] and _sha256(path) == expected["sha256"]
            except OSError as error:
                raise unreadable(name, path, error) from error
            if not intact:
                raise damaged(name, path, f"its content is not that of {CHECKSUMS}")


def read(name: str, path: Path) -> bytes:
    """The content of a file; UserError, with the data set's name, if it cannot be read."""
    try:
        return read_bytes(path)
    except OSError as error:
        raise unreadable(name, path, error) from error


def damaged(name: str, path: Path | str, cause: str) -> UserError:
    """The error for a file of which it is known that its content is wrong."""
    return UserError(f"{name}: {path} is damaged ({cause}); {REMEDY}")


def unreadable(name: str, path: Path | str, error: OSError) -> UserError:
    """The error for a file that may be intact but cannot be read now."""
    remedy = "check that it exists and may be read, and start again"
    return UserError(f"{name}: cannot read {path} ({error.strerror or type(error).__name__}); {remedy}")


def check_class_names(name: str, path: Path, classes: Sequence[str], count: int) -> None:
    """Check the class names that TFDS has read: it goes on without an error if the file is damaged or unreadable.

    Args:
      name: the data set's name, for messages.
      path: the file of the names; without one the classes are called by their numbers.
      classes: the names that TFDS has read.
      count: the number of classes in features.json.

    Raises:
      UserError: the file cannot be read, or holds other names or another number of them.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(name, path, error) from error
    try:
        names = [line.strip() for line in content.decode().split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise damaged(name, path, "it is not UTF-8") from error
    if names != list(classes) or len(set(names)) != count:
        raise damaged(name, path, f"it has {len(set(names))} different names, features.json says {count}")


def check_files(name: str, folder: Path, referenced: Sequence[str]) -> None:
    """Raise UserError for a file of records in the folder that is of no split: the description was changed."""
    for path in sorted(folder.glob(_RECORDS)):
        if path.name not in referenced:
            cause = f"{path.name} belongs to none of its splits"
            raise damaged(name, folder / "dataset_info.json", cause)


def check_counts(name: str, split: str, pieces: Sequence[tuple[str, int]]) -> None:
    """Raise UserError unless every file has as many records as its description says.

    Args:
      name: the data set's name, for messages.
      split: the split's name, for messages.
      pieces: path and expected number of records of each file.
    """

    def count(piece):
        return _with_reader(name, split, piece[0], lambda reader: reader.num_records())

    with ThreadPoolExecutor(16) as pool:  # opening a file waits for the disk
        for (path, expected), number in zip(pieces, pool.map(count, pieces), strict=True):
            if number != expected:
                raise damaged(name, path, f"it has {number} examples, dataset_info.json says {expected}")


def check_bytes(name: str, split: str, paths: Sequence[str], expected: int) -> None:
    """Raise UserError unless the records of a split are `expected` bytes long, if that is known. Reads all of them.

    Args:
      name: the data set's name, for messages.
      split: the split's name, for messages.
      paths: the split's files.
      expected: the sum of the records' sizes in bytes; 0 is unknown.
    """
    if expected:
        total = sum(_with_reader(name, split, path, _record_bytes) for path in paths)
        if total != expected:
            raise damaged(name, paths[0], f"its examples have {total} bytes, dataset_info.json says {expected}")


def _record_bytes(reader) -> int:
    count = reader.num_records()
    starts = range(0, count, _READ_AT_ONCE)
    return sum(len(record) for n in starts for record in reader.read(range(n, min(n + _READ_AT_ONCE, count))))


def _with_reader(name: str, split: str, path: str, function: Callable):
    """`function` of an open reader of the file."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        try:
            return function(reader)
        finally:
            reader.close()
    except Exception as error:  # array_record has no class for what it makes of a damaged file
        try:
            Path(path).open("rb").close()
        except OSError as reason:
            raise unreadable(name, path, reason) from error
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{name}: cannot read the {split} split in {path} ({cause}); {REMEDY}") from error


def _sha256(path: Path) -> str:
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _serialized(sums: dict[str, dict]) -> bytes:
    """The content of `checksums.json`, which holds a SHA-256 of its own."""
    text = json.dumps(sums, sort_keys=True)
    return (json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "files": sums}, indent=1) + "\n").encode()


def _parsed(name: str, path: Path, content: bytes) -> dict[str, dict]:
    try:
        sums = json.loads(content)["files"]
        intact = _serialized(sums) == content
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise damaged(name, path, "it does not have the SHA-256 that it holds")
    return sums
