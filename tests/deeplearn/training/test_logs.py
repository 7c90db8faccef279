import errno
import io
import json
import math
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.training import logs, metric_lines


def write(workdir, steps, resume_step=None, value=float):
    log = logs.open_logs(workdir, resume_step)
    for step in steps:
        log.write(step, {"loss": value(step)})
    log.close()


def steps(workdir):
    return [record["step"] for record in logs.read_metrics(workdir)]


def test_what_is_written_is_read(tmp_path):
    log = logs.open_logs(tmp_path)
    log.write(10, {"loss": jnp.float32(0.25), "accuracy": np.float64(0.1), "epoch": 1})
    expected = [{"step": 10, "loss": 0.25, "accuracy": 0.1, "epoch": 1.0}]
    assert logs.read_metrics(tmp_path) == expected  # before it is closed, too
    log.close()
    assert logs.read_metrics(tmp_path) == expected


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_valid_json(tmp_path, value):
    write(tmp_path, [1], value=lambda step: value)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / logs.METRICS).read_text(), parse_constant=refuse)
    np.testing.assert_equal(logs.read_metrics(tmp_path)[0]["loss"], value)


@pytest.mark.parametrize("resume_step, kept", [(None, []), (0, [0]), (2, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_resuming_drops_what_is_done_again(tmp_path, resume_step, kept):
    write(tmp_path, range(4))
    write(tmp_path, [10], resume_step)
    assert steps(tmp_path) == [*kept, 10]


LINE = len(metric_lines.encode(0, {"loss": 0.0}))


@pytest.mark.parametrize("cut", range(1, LINE + 1))
def test_a_half_written_last_line(tmp_path, cut):
    write(tmp_path, range(3))
    path = tmp_path / logs.METRICS
    path.write_bytes(path.read_bytes()[:-cut])
    assert steps(tmp_path) == [0, 1]
    write(tmp_path, [7], resume_step=7)
    assert steps(tmp_path) == [0, 1, 7]


def test_a_restart_keeps_the_old_lines(tmp_path):
    for number in range(3):
        write(tmp_path, [number, 10])
    assert steps(tmp_path) == [2, 10]
    names = [f"{logs.METRICS}.{number}" for number in (1, 2)]
    assert {path.name for path in tmp_path.iterdir()} == {logs.METRICS, logs.EVENTS, *names}
    for number, name in enumerate(names):
        (tmp_path / name).rename(tmp_path / logs.METRICS)
        assert steps(tmp_path) == [number, 10]


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


def test_nothing_there(tmp_path):
    assert logs.read_metrics(tmp_path) == []


@pytest.mark.parametrize("limited", [logs.METRICS, logs.EVENTS])
def test_a_full_disk(tmp_path, limited):
    """A limit on file sizes stands in for it; it strikes the longer file first."""
    log = logs.open_logs(tmp_path)
    log.write(1, {"loss": 1.0})
    scalars = {"loss": 1.0} if limited == logs.EVENTS else {f"{i}": math.pi for i in range(100)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match=f"cannot write .*{limited}: File too large") as error:
            log.write(2, scalars)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    log.close()
    assert steps(tmp_path)[0] == 1


def test_a_missing_workdir(tmp_path):
    with pytest.raises(UserError, match="cannot write .*No such file"):
        logs.open_logs(tmp_path / "none")


def test_tensorboard_shows_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, range(5))
    write(tmp_path, range(3, 7), resume_step=2, value=lambda step: -step)
    events = accumulator.EventAccumulator(str(tmp_path / logs.EVENTS)).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (0, 0), (1, 1), (2, 2), (3, -3), (4, -4), (5, -5), (6, -6),
    ]  # fmt: skip


def test_killed(tmp_path):
    """kill -9 loses no record that was written. (To write them takes no PyTorch, which takes a second to import.)"""
    program = f"""
        import os, signal, sys
        from deeplearn.training import logs, metric_lines
        log = logs.open_logs({str(tmp_path)!r})
        for step in range(100):
            log.write(step, {{"loss": 1.0}})
        assert not [name for name in sys.modules if name.startswith("torch.")]
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert steps(tmp_path) == list(range(100))


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_lines_where_there_is_no_terminal():
    stream, clock = io.StringIO(), Clock()
    progress = logs.progress(1000, batch_size=64, stream=stream, every=10, clock=clock)
    for step in range(100, 1001, 100):
        clock.seconds += 4
        progress.tick(step, {"loss": 0.12345, "learning_rate": 1e-3, "other": 5})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step  100/1000  loss 0.1235  lr 0.001",
        "step  400/1000  loss 0.1235  lr 0.001  1,600 examples/s  0:24 left",
        "step  700/1000  loss 0.1235  lr 0.001  1,600 examples/s  0:12 left",
        "step 1000/1000  loss 0.1235  lr 0.001  1,600 examples/s  0:00 left",
    ]


def test_the_training_clock_leaves_pauses_out():
    stream, clock = io.StringIO(), Clock()
    progress = logs.progress(40, batch_size=1, stream=stream, every=0, clock=clock)
    for step in (10, 20, 30):
        clock.seconds += 1000
        progress.tick(step, {"seconds": step / 5})
    assert stream.getvalue().splitlines()[-1] == "step 30/40  5 examples/s  0:02 left"


def test_notes_are_always_printed():
    stream = io.StringIO()
    progress = logs.progress(10, batch_size=1, stream=stream, every=1e9)
    for step in (1, 2):
        progress.note(step, {"validation/loss": 0.5, "validation/accuracy": 0.75})
    assert stream.getvalue() == "".join(
        f"step  {step}/10  validation/loss 0.5  validation/accuracy 0.75\n" for step in (1, 2)
    )


def test_a_bar_in_a_terminal():
    stream, clock = Terminal(), Clock()
    progress = logs.progress(100, batch_size=32, initial_step=20, stream=stream, clock=clock)
    for step in (40, 60):
        clock.seconds += 1e6
        progress.tick(step, {"loss": 2.5, "learning_rate": 0.1, "seconds": step})
    progress.note(60, {"validation/loss": 1.5})
    progress.close()
    shown = stream.getvalue().split("\r")
    assert any(
        "60%" in part and "60/100" in part and "loss 2.5  lr 0.1  32 examples/s  0:40 left" in part for part in shown
    )
    assert any("step  60/100  validation/loss 1.5\n" in part for part in shown)
