import io
import json
import math
import os
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
    """At most one in 10 seconds, and the last one, 8 seconds after the one before."""
    stream, clock = io.StringIO(), Clock()
    progress = logs.progress(900, batch_size=64, stream=stream, every=10, clock=clock)
    for step in range(100, 901, 100):
        clock.seconds += 4
        progress.tick(step, {"loss": 0.12345, "learning_rate": 1e-3, "other": 5})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 100/900  loss 0.1235  lr 0.001",
        "step 400/900  loss 0.1235  lr 0.001  1,600 examples/s  0:20 left",
        "step 700/900  loss 0.1235  lr 0.001  1,600 examples/s  0:08 left",
        "step 900/900  loss 0.1235  lr 0.001  1,600 examples/s  0:00 left",
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
