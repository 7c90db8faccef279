import errno
import json
import os
import pathlib

import pytest

from deeplearn.errors import UserError
from deeplearn.files import locate, read_json, replacing, write_json, writing


def test_the_old_file_stays_if_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_the_suffix_is_kept(tmp_path):
    """Writers of pictures choose the format by it."""
    with replacing(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("")


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    """After a power cut the new file would be there, and empty."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda at: synced.append((os.fstat(at).st_size, (tmp_path / "a").exists())))
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("all of it")
    assert synced == [(9, False)] and (tmp_path / "a").read_text() == "all of it"


@pytest.mark.parametrize("path", ["/dev/full", "missing/a"])
def test_a_refusal_is_one_line(path, tmp_path):
    with pytest.raises(UserError, match=f"cannot write {path}: (No space left|No such file)") as error:
        with writing(path), open(path, "w") as file:
            file.write("x")
    assert "\n" not in str(error.value)


def test_no_directory(tmp_path):
    with pytest.raises(UserError, match="No such file"), replacing(tmp_path / "none" / "a") as temporary:
        temporary.write_text("")


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    """bash does not expand it in --workdir=~/runs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/runs/a") == tmp_path / "runs" / "a" and locate("~") == tmp_path
    for path in ("runs/~", "./~/a", "~nobody-of-this-name/a", str(tmp_path)):
        assert locate(path) == pathlib.Path(path)
    with replacing("~/a.txt") as temporary:
        temporary.write_text("x")
    write_json("~/a.json", {"a": 1})
    assert (tmp_path / "a.txt").read_text() == "x" and read_json("~/a.json") == {"a": 1}


CONTENT = {"seed": 3, "config": {"rate": 1e-3, "name": "naïve", "nested": [1, None, True]}, "1e5": 1e300, "resumed": []}


def test_json_is_read_as_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, CONTENT | {"tuple": (1, 2)})
    assert read_json(path) == CONTENT | {"tuple": [1, 2]}
    written = json.loads(path.read_text())
    assert written.pop("checksum").startswith("crc32:") and written == CONTENT | {"tuple": [1, 2]}
    assert path.read_text().startswith('{\n  "seed": 3,') and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    path.write_text(json.dumps(written, indent=4))  # an older file
    assert read_json(path) == written
    with pytest.raises(ValueError, match="checksum"):
        write_json(path, {"checksum": 1})


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"null", "it is not a JSON object"),
        (b"[1, 2]", "it is not a JSON object"),
        (b"7", "it is not a JSON object"),
        (b'"text"', "it is not a JSON object"),
        (b'{"seed": 3', "it is not JSON: "),
        (b'{"seed": 3}}', "it is not JSON: Extra data"),
        (bytes(20), "it is not JSON: "),
        (b'{"seed": "\xff"}', "byte 10 is not UTF-8"),
        ("{}".encode("utf-16"), "byte 0 is not UTF-8"),
        (b"[" * 100_000, "its JSON is nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "it is not JSON: "),
        (b'{"seed": 3, "checksum": "crc32:00000000"}', "its checksum is wrong"),
        (b'{"seed": 3, "checksum": null}', "its checksum is wrong"),
    ],
)
def test_damaged_json_is_one_line(tmp_path, content, cause):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path, "start a new study")
    line = str(error.value)
    assert line.startswith(f"{path} is damaged ({cause}") and line.endswith("); start a new study")
    assert "\n" not in line and len(line) < 400


def test_no_flipped_bit_yields_other_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                result = read_json(path)
            except UserError:
                continue
            assert result == CONTENT, (position, damaged[position])


def test_json_that_is_absent(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")
    with pytest.raises(NotADirectoryError):
        read_json(tmp_path / "file" / "a.json")


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES, errno.ENETDOWN, errno.EISDIR])
def test_json_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, code):
    path = tmp_path / "a.json"
    if code == errno.EISDIR:
        path.mkdir()
    else:

        def refuse(self):
            raise OSError(code, os.strerror(code), str(self))

        monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(UserError) as error:
        read_json(path)
    assert str(error.value).startswith(f"cannot read {path}: {os.strerror(code)}; nothing was changed; ")
    assert "\n" not in str(error.value)
