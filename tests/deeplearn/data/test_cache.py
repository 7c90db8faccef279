import errno
import logging
import os

import numpy as np
import pytest

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
        check(cached("x.npz", [tmp_path], build))
    assert build.calls == 1
    assert os.listdir(tmp_path) == ["x.npz"]


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one bit": flip_a_byte,
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_built_again(tmp_path, damage, caplog):
    build = Build()
    cached("x.npz", [tmp_path], build)
    DAMAGE[damage](tmp_path / "x.npz")
    with caplog.at_level(logging.WARNING):
        check(cached("x.npz", [tmp_path], build))
    assert build.calls == 2 and f"{tmp_path / 'x.npz'} is damaged" in caplog.text
    check(cached("x.npz", [tmp_path], build))
    assert build.calls == 2


def test_a_folder_marked_read_only_is_left_alone(tmp_path):
    """Also by root, who could write there."""
    read_only, other = tmp_path / "read_only", tmp_path / "new" / "other"
    read_only.mkdir()
    read_only.chmod(0o555)
    build = Build()
    for _ in range(2):
        check(cached("x.npz", [read_only, other], build))
    assert build.calls == 1
    assert os.listdir(read_only) == [] and os.listdir(other) == ["x.npz"]


def test_no_folder_can_be_written(tmp_path, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with caplog.at_level(logging.WARNING):
        check(cached("x.npz", [in_the_way / "folder"], Build()))
    assert "cannot write x.npz" in caplog.text


def test_a_full_disk_costs_a_warning(tmp_path, monkeypatch, caplog):
    def savez(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    with caplog.at_level(logging.WARNING):
        check(cached("x.npz", [tmp_path], Build()))
    assert "No space left on device" in caplog.text
    assert os.listdir(tmp_path) == []
