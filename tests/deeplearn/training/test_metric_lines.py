"""Damage to metrics.jsonl: one line that names the place, and never other numbers."""

import errno
import math
import os
import pathlib

import pytest

from deeplearn.errors import UserError
from deeplearn.training import logs


def write(workdir, steps, resume_step=None):
    log = logs.open_logs(workdir, resume_step)
    for step in steps:
        log.write(step, {"loss": float(step)})
    log.close()


def test_lines_without_a_checksum_are_accepted(tmp_path):
    old = '{"step": 1, "loss": 0.5, "x\u2028y": "NaN"}\n{"step": 2, "loss": 3}\r\n'
    (tmp_path / logs.METRICS).write_text(old, encoding="utf-8", newline="")
    first, second = logs.read_metrics(tmp_path)
    assert math.isnan(first.pop("x\u2028y")) and first == {"step": 1, "loss": 0.5}
    assert second == {"step": 2, "loss": 3.0}
    write(tmp_path, [3], resume_step=2)
    assert (tmp_path / logs.METRICS).read_bytes().startswith(old.encode())


BEFORE, AFTER = b'{"step": 1, "loss": 0.5}\n', b'{"step": 9, "loss": 0.5}\n'
DAMAGE = {
    "no brace": b'"step": 2}\n',
    "not UTF-8": b'{"step": 2, "\xff": 1}\n',
    "NUL bytes": bytes(40) + b"\n",
    "cut off": b'{"step": 2, "lo\n',
    "empty line": b"\n",
    "empty object": b"{}\n",
    "null": b"null\n",
    "list": b"[]\n",
    "number": b"7\n",
    "step a string": b'{"step": "2"}\n',
    "step a fraction": b'{"step": 2.0}\n',
    "step a truth value": b'{"step": true}\n',
    "step too large": b'{"step": 99999999999999999999}\n',
    "too many digits": b'{"step": ' + b"9" * 5000 + b"}\n",
    "value too large": b'{"step": 2, "loss": 1' + b"0" * 400 + b"}\n",
    "value null": b'{"step": 2, "loss": null}\n',
    "value a list": b'{"step": 2, "loss": [1]}\n',
    "value a string": b'{"step": 2, "loss": "1"}\n',
    "value a truth value": b'{"step": 2, "loss": true}\n',
    "step twice": b'{"step": 1, "loss": 0.5}\n',
    "step back": b'{"step": 0, "loss": 0.5}\n',
    "vertical tab": b'{"step": 2}\x0b{"step": 3}\n',
    "form feed": b'{"step": 2}\x0c{"step": 3}\n',
    "next line": '{"step": 2}\u0085{"step": 3}\n'.encode(),
    "nested deeply": b"[" * 100_000 + b"\n",
    "wrong checksum": b'{"step": 2, "loss": 0.5, "crc": "00000000"}\n',
    "checksum under another key": b'{"step": 2, "loss": 0.5, "crb": "7b4f2d1a"}\n',
    "something after the object": b'{"step": 2} \x08',
    "a flipped bit in the end of the last line": b'{"step": 2}\x8a',
    "not the beginning of an object": b"\x00\x00\x00",
}


@pytest.mark.parametrize("place", ["middle", "end"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named(tmp_path, damage, place):
    if place == "middle" and not DAMAGE[damage].endswith(b"\n"):
        pytest.skip("a line without an end is the last")
    path = tmp_path / logs.METRICS
    path.write_bytes(BEFORE + DAMAGE[damage] + (AFTER if place == "middle" else b""))
    before = path.read_bytes()
    for read in (logs.read_metrics, logs.open_logs):
        with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged .*restore or remove it") as error:
            read(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cause", ["Is a directory", "Permission denied", "Input/output error"])
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, cause):
    path = tmp_path / logs.METRICS
    if cause == "Is a directory":
        path.mkdir()
    else:
        write(tmp_path, [1])
        code = {"Permission denied": errno.EACCES, "Input/output error": errno.EIO}[cause]

        def refuse(self):
            raise OSError(code, os.strerror(code), str(self))

        monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    for read in (logs.read_metrics, logs.open_logs):
        with pytest.raises(UserError, match=f"cannot read {path}: {cause}; nothing was changed") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


def test_no_flipped_bit_yields_other_numbers(tmp_path):
    def scalars(step):
        return {"loss": 1 / (step + 3), "accuracy": math.nan if step % 3 else 0.125, "seconds": 17.0 * step}

    log = logs.open_logs(tmp_path)
    for step in range(0, 40, 4):
        log.write(step, scalars(step))
    log.close()
    path = tmp_path / logs.METRICS
    content, expected = path.read_bytes(), logs.read_metrics(tmp_path)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            result = logs.read_metrics(tmp_path)
        except UserError:
            continue
        assert str(result) == str(expected), (position, damaged[position])


def test_reserved_names(tmp_path):
    log = logs.open_logs(tmp_path)
    for name in ("step", "crc"):
        with pytest.raises(ValueError, match=name):
            log.write(1, {name: 1.0})
