"""`deeplearn cloud` in a process of its own, which finds nothing on the PATH but the stand-in."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deeplearn.cloud import life
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
    """`start(*flags, variables=None, **answers)`: the running `deeplearn cloud`; variables are of its environment."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background, and what it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)

    kept = {name: value for name, value in os.environ.items() if name != "DEEPLEARN_TOKEN"}
    own = {"PATH": str(folder / "bin"), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}

    def start(*flags, variables=None, **answers):
        (folder / "answers").write_text(json.dumps(answers))
        return subprocess.Popen(
            [sys.executable, "-m", "deeplearn", "cloud", *flags],
            env={**kept, **own, **(variables or {})},
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


@pytest.fixture
def home(tmp_path):
    """The home directory of a worker on which the project lies."""
    place = tmp_path / "deeplearn" / "deeplearn" / "cloud"
    place.mkdir(parents=True)
    shutil.copy(life.ROOT / "deeplearn" / "cloud" / "worker.sh", place)
    yield tmp_path
    line = ["bash", life.ROOT / "deeplearn" / "cloud" / "worker.sh", "stop"]
    subprocess.run(line, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)}, check=True)
