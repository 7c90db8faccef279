import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from deeplearn.data import cache
from deeplearn.data.cache import cached

ARRAYS = {"image": np.arange(3000, dtype=np.uint8).reshape(50, 60), "classes": np.array(["a", "bc"])}


class Build:
    """A builder that counts how often it was needed."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


def check(arrays):
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_built_once(tmp_path):
    build = Build()
    for _ in range(3):
        check(cached("x.arrays", [tmp_path], build))
    assert build.calls == 1
    assert os.listdir(tmp_path) == ["x.arrays"]


SMALL = {"label": np.arange(5, dtype=np.int32), "classes": np.array(["a", "\u00fc"]), "size": np.array(3.5)}


def older_format(path):
    with path.open("wb") as file:
        np.savez(file, **ARRAYS)


def swap(path):
    """The file of another data set, renamed."""
    cached("y.arrays", [path.parent], lambda: SMALL)
    path.with_name("y.arrays").replace(path)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte too short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one byte too long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "one bit": lambda path: path.write_bytes(flipped(path.read_bytes(), 1000, 1)),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "a long line": lambda path: path.write_bytes(b"x" * 2**21),
    "empty": lambda path: path.write_bytes(b""),
    "older format": older_format,
    "another data set's": swap,
}


def flipped(content, place, bits):
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_built_again(tmp_path, damage, caplog):
    build = Build()
    cached("x.arrays", [tmp_path], build)
    DAMAGE[damage](tmp_path / "x.arrays")
    with caplog.at_level(logging.WARNING):
        check(cached("x.arrays", [tmp_path], build))
    (record,) = caplog.records
    assert build.calls == 2 and f"{tmp_path / 'x.arrays'} is damaged" in record.getMessage()
    assert "\n" not in record.getMessage()
    check(cached("x.arrays", [tmp_path], build))
    assert build.calls == 2


def test_every_changed_byte_is_detected(tmp_path):
    """Two bits of each byte, and every truncation."""
    cached("x.arrays", [tmp_path], lambda: SMALL)
    path = tmp_path / "x.arrays"
    content = path.read_bytes()
    for name, array in cache.read(path).items():
        np.testing.assert_array_equal(array, SMALL[name])
        assert array.dtype == SMALL[name].dtype and array.shape == SMALL[name].shape
    damaged = [flipped(content, place, 1 << bit) for place in range(len(content)) for bit in {place % 8, 5}]
    damaged += [content[:size] for size in range(len(content))]
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(cache.Damaged):
            cache.read(path)


class FailsLater:
    """A file of which the first block can be read."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def readline(self, limit):
        return self.file.readline(limit)

    def readinto(self, buffer):
        raise self.error


@pytest.mark.parametrize("when", ["opening", "reading"])
@pytest.mark.parametrize("code", ["EIO", "EMFILE", "ESTALE", "EACCES"])
def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, caplog, code, when):
    """The arrays are built, and the file stays as it is: it may be intact."""
    first, second = tmp_path / "first", tmp_path / "second"
    build = Build()
    cached("x.arrays", [first], build)
    content = (first / "x.arrays").read_bytes()
    error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    real = Path.open

    def refuse(path, mode="r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        if path.parent != first or mode != "rb":
            return file
        if when == "reading":
            return FailsLater(file, error)
        file.close()
        raise error

    for folders, built in (([first], 2), ([first, second], 3), ([first, second], 3)):
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(Path, "open", refuse)
            check(cached("x.arrays", folders, build))
        (record,) = caplog.records
        assert record.getMessage().startswith(f"cannot read {first / 'x.arrays'} ({error.strerror}): building")
        assert build.calls == built and "damaged" not in caplog.text
        assert os.listdir(first) == ["x.arrays"] and (first / "x.arrays").read_bytes() == content
    check(cached("x.arrays", [first], build))
    assert build.calls == 3


def test_a_folder_marked_read_only_is_left_alone(tmp_path):
    """Also by root, who could write there."""
    read_only, other = tmp_path / "read_only", tmp_path / "new" / "other"
    read_only.mkdir()
    read_only.chmod(0o555)
    build = Build()
    for _ in range(2):
        check(cached("x.arrays", [read_only, other], build))
    assert build.calls == 1
    assert os.listdir(read_only) == [] and os.listdir(other) == ["x.arrays"]


def test_no_folder_can_be_written(tmp_path, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with caplog.at_level(logging.WARNING):
        check(cached("x.arrays", [in_the_way / "folder"], Build()))
    assert "cannot write x.arrays" in caplog.text


def test_a_full_disk_costs_a_warning(tmp_path, monkeypatch, caplog):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with caplog.at_level(logging.WARNING):
        check(cached("x.arrays", [tmp_path], Build()))
    assert "No space left on device" in caplog.text
    assert os.listdir(tmp_path) == []
