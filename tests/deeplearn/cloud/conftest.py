"""`deeplearn cloud` in a process of its own, which finds nothing on the PATH but the stand-in."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deeplearn.cloud.standin import STAND_IN, calls

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path):
    """Where the stand-in is, alone on the PATH, and its notes."""
    (tmp_path / "bin").mkdir()
    for name in ("gcloud", "git"):
        path = tmp_path / "bin" / name
        path.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)))
        path.chmod(0o755)
    (tmp_path / "calls").write_text("")
    return tmp_path


@pytest.fixture
def start(folder):
    """`start(*flags, **answers)`: the running `deeplearn cloud`."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background, and what it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*flags, **answers):
        (folder / "answers").write_text(json.dumps(answers))
        return subprocess.Popen(
            [sys.executable, "-m", "deeplearn", "cloud", *flags],
            env={**os.environ, "PATH": str(folder / "bin"), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def cloud(start, folder):
    """`cloud(*flags, **answers)`: (status, standard output, standard error, the kinds of calls) of the command."""

    def cloud(*flags, **answers):
        (folder / "calls").write_text("")
        out, err = (process := start(*flags, **answers)).communicate(timeout=120)
        return process.returncode, out, err, [kind for kind, _ in calls(folder)]

    return cloud
