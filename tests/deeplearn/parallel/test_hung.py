"""Real processes on this machine that are stopped, as by SIGSTOP."""

import signal
import time

import pytest

from tests.deeplearn.parallel.launch import finished
from tests.deeplearn.parallel.test_processes import LONG, records, said, under_way

SILENCE = 6  # seconds
KILL_IT = (
    "(stopped, or its machine hangs); kill it, then the same command on every process goes on from the last checkpoint"
)


@pytest.mark.parametrize("number, victim", [(2, 0), (4, 2)])
def test_a_stopped_process_is_named(start, tmp_path, number, victim):
    """All others name it and exit; when it is continued, it exits too, rather than train on."""
    running = start(number, *LONG, f"--process_silence={SILENCE}")
    under_way(running, tmp_path / "run")
    running[victim].send_signal(signal.SIGSTOP)
    others = [process for process in running if process is not running[victim]]
    texts = dict(zip(others, finished(others), strict=True))
    steps = len(records(tmp_path / "run"))
    running[victim].send_signal(signal.SIGCONT)
    texts[running[victim]] = finished([running[victim]])[0]
    for rank, process in enumerate(running):
        status, _, err = texts[process]
        who = f"process {rank}: " if rank else ""
        assert status == 2 and said(err) == [f"error: {who}process {victim} has been silent for {SILENCE} s {KILL_IT}"]
        assert rank == victim or ("Traceback" not in err and "Check failure" not in err and "Terminating" not in err)
    assert len(records(tmp_path / "run")) <= steps + 1


@pytest.mark.slow
def test_a_job_that_is_suspended_goes_on(start, tmp_path):
    """All its processes are stopped for long, and continued one after another: none blames another."""
    running = start(2, *LONG, f"--process_silence={SILENCE}")
    under_way(running, tmp_path / "run")
    for process in running:
        process.send_signal(signal.SIGSTOP)
    time.sleep(SILENCE + 2)
    steps = len(records(tmp_path / "run"))
    for process in running:
        process.send_signal(signal.SIGCONT)
        time.sleep(1)
    while len(records(tmp_path / "run")) < steps + 3 and all(process.poll() is None for process in running):
        time.sleep(0.05)
    running[0].send_signal(signal.SIGTERM)
    done = finished(running)
    assert [status for status, *_ in done] == [0, 0], done
    assert "saved; to go on" in done[0][2]
