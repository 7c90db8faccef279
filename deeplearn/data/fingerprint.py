"""The fingerprint of a data set: what must be equal for two runs to have learnt from the same examples."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from deeplearn.data import integrity
from deeplearn.data.blank import Blank
from deeplearn.data.cache import raw
from deeplearn.data.sources import Arrays, Records, Source, Subset
from deeplearn.data.splits import SPLITS, Data
from deeplearn.errors import UserError

SAMPLES = 64  # examples that are read of a source that is not in memory
ENDS = 2**16  # bytes that are read at the start and the end of a file of records

_BLOCK = 2**22  # bytes that are hashed at once
_DIGITS = 16  # hexadecimal digits of a SHA-256 that are kept
_DESCRIPTIONS = ("dataset_info.json", "features.json", "label.labels.txt")


def fingerprint(data: Data) -> dict[str, str]:
    """Name, version, classes and content of a data set as short strings, for the identity of a run.

    It depends on no path, time or machine. For splits in memory (`Arrays`, and a `Subset` of them) it is equal exactly
    if all examples are: names, dtypes, shapes, values and order of every field. Other sources are sampled:

      - `Records`: the description files, size, start and end of every file of records, and 64 examples, decoded;
      - `Blank`, and arrays that `np.broadcast_to` made: the spec and the repeated value;
      - a source with a method `fingerprint() -> str`: what that returns;
      - any other source: its length and 64 examples, evenly spaced; it must return the same ones at every call.

    Args:
      data: the data set.

    Returns:
      {"name", "version", "classes", "train", "validation", "test"}; a split as "5 examples, sha256 0123456789abcdef",
      classes as "3 names, sha256 0123456789abcdef", "" if nothing is classified.

    Raises:
      UserError: a file of the data set cannot be read, or a field holds Python objects.

    >>> zeros = Arrays({"x": np.zeros((5, 2), np.uint8)})
    >>> fingerprint(Data("zeros", zeros, zeros, zeros))["train"]
    '5 examples, sha256 ...'
    """
    classes = f"{len(data.classes)} names, sha256 {_digest([_encoded(list(data.classes))])}" if data.classes else ""
    splits = {}
    for split in SPLITS:
        source = data.split(split)
        splits[split] = f"{len(source)} examples, {_of_source(source, f'{data.name} {split}')}"
    return {"name": data.name, "version": data.version, "classes": classes, **splits}


def _of_source(source: Source, name: str) -> str:
    if callable(getattr(source, "fingerprint", None)):
        return source.fingerprint()
    return f"sha256 {_digest(_content(source, name))}"


def _content(source: Source, name: str) -> Iterator[bytes]:
    """What is hashed of a source, in blocks."""
    source, rows = _resolved(source)
    if isinstance(source, Arrays):
        yield from _fields(source.arrays, name, rows)
    elif isinstance(source, Blank):
        spec = {key: (list(x.shape), np.dtype(x.dtype).name) for key, x in source.spec.items()}
        yield _encoded(["blank", len(source if rows is None else rows), spec])
    else:
        view = source if rows is None else Subset(source, rows)
        yield _encoded([type(source).__name__ if isinstance(source, Records) else "source", len(source), len(view)])
        if callable(getattr(source, "fingerprint", None)):
            yield source.fingerprint().encode()
        if isinstance(source, Records):
            yield from _files(source)
        if rows is not None:
            yield from _array(rows.astype("<i8"), name)
        if len(view):
            samples = np.linspace(0, len(view) - 1, min(len(view), SAMPLES)).round().astype(int)
            yield from _fields(view.__getitems__(samples), name)


def _resolved(source: Source) -> tuple[Source, np.ndarray | None]:
    """The source that subsets of subsets are of, and the rows of it; None is all of them."""
    rows = None
    while isinstance(source, Subset):
        rows = np.asarray(source.rows) if rows is None else np.asarray(source.rows)[rows]
        source = source.source
    return source, rows


def _fields(arrays: Mapping[str, np.ndarray], name: str, rows: np.ndarray | None = None) -> Iterator[bytes]:
    for key in sorted(arrays):
        yield _encoded(key)
        yield from _array(np.asarray(arrays[key]), f"{name}: the field {key!r}", rows)


def _array(array: np.ndarray, name: str, rows: np.ndarray | None = None) -> Iterator[bytes]:
    """Dtype, shape and bytes of an array or of some of its rows, in C order, a block of rows at a time."""
    if array.dtype.hasobject:
        raise UserError(f"{name} holds Python objects; make it an array of numbers")
    shape = array.shape if rows is None else (len(rows), *array.shape[1:])
    yield _encoded([array.dtype.str, array.dtype.name, list(shape)])
    repeated = [stride == 0 and size > 1 for stride, size in zip(array.strides, array.shape, strict=True)]
    if rows is None and any(repeated):
        yield b"broadcast"  # the elements themselves may be more than the memory holds
        array = array[tuple(slice(1) if once else slice(None) for once in repeated)]
    array = np.atleast_1d(array)
    count = len(array) if rows is None else len(rows)
    step = max(1, _BLOCK // max(1, array[:1].nbytes))
    for start in range(0, count, step):
        block = slice(start, start + step)
        yield raw(np.ascontiguousarray(array[block if rows is None else rows[block]]))


def _files(source: Records) -> Iterator[bytes]:
    """The descriptions and the ends of the files of records: an ArrayRecord file has its index at its end."""
    spec = source.image
    yield _encoded([list(spec.shape), np.dtype(spec.dtype).name, list(source.classes)])
    folder = Path(source.files[0][0]).parent
    for file in _DESCRIPTIONS:
        if (folder / file).exists():
            yield _encoded([file, _digest([integrity.read(source.name, folder / file)])])
    for path, count in source.files:
        try:
            with Path(path).open("rb") as file:
                size = file.seek(0, 2)
                yield _encoded([Path(path).name, count, size])
                for start in (0, max(0, size - ENDS)):
                    file.seek(start)
                    yield file.read(ENDS)
        except OSError as error:
            raise integrity.unreadable(source.name, path, error) from error


def _encoded(value) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:_DIGITS]
