import datetime
import errno
import fcntl
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import textwrap

import jax
import pytest

from deeplearn.errors import UserError
from deeplearn.training import manifest

CONFIG = {"seed": 3, "batch_size": 64, "data": {"name": "mnist", "shape": [28, 28]}, "optimizer": None}


def test_what_is_written_is_read(tmp_path):
    command = ["deeplearn", "train", "--workdir=a b", "--config.name=it's"]
    written = manifest.write(tmp_path, CONFIG, "experiments/x.py", command)
    assert written == manifest.read(tmp_path) == json.loads((tmp_path / "manifest.json").read_text())
    assert written["config"] == CONFIG and written["experiment"] == "experiments/x.py" and written["seed"] == 3
    assert shlex.split(written["command"]) == command
    assert written["versions"]["python"] == platform.python_version()
    assert written["versions"]["jax"] == jax.__version__
    assert {"jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= written["versions"].keys()
    assert written["devices"] == {"platform": "cpu", "kind": "cpu", "count": jax.device_count()}
    started = datetime.datetime.fromisoformat(written["started"])
    assert abs(datetime.datetime.now().astimezone() - started) < datetime.timedelta(minutes=1)
    assert os.uname().nodename not in written


def test_a_resumed_run_keeps_its_first_start(tmp_path):
    first = manifest.write(tmp_path, CONFIG, "x.py", ["first"])
    manifest.write(tmp_path, CONFIG, "x.py", ["second"])
    third = manifest.write(tmp_path, CONFIG, "x.py", ["third"])
    assert [launch["command"] for launch in third["resumed"]] == ["second", "third"]
    assert {**third, "resumed": []} == first


def test_git(tmp_path):
    def git(*arguments):
        names = ["-c", "user.name=n", "-c", "user.email=e@x"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert manifest._git(tmp_path) is None
    git("init")
    assert manifest._git(tmp_path) is None  # nothing committed
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    assert manifest._git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "b").write_text("1")
    assert not manifest._git(tmp_path)["dirty"]
    (tmp_path / "a").write_text("2")
    assert manifest._git(tmp_path)["dirty"]


def test_no_git_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest._git(tmp_path) is None


@pytest.mark.parametrize("content", [None, "", "{", "[]", "7"])
def test_what_is_no_run_says_so(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path} is not a run") as error:
        manifest.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a run"):
        manifest.read(tmp_path / "file")


def test_the_same_config_goes_on(tmp_path):
    manifest.check_same(tmp_path, CONFIG)
    manifest.write(tmp_path, CONFIG, "x.py", [])
    manifest.check_same(tmp_path, {**CONFIG, "data": {"shape": (28, 28), "name": "mnist"}})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch_size": 128}, ["batch_size is 64 there and 128 here", "--config.batch_size=64", "--workdir"]),
        ({"data": {"name": "mnist", "shape": [32, 32]}}, ["data.shape is [28, 28] there and [32, 32] here"]),
        ({"new": 1}, ["new is absent there and 1 here"]),
        ({"optimizer": "adam", "seed": 0}, ["seed is 3 there and 0 here", "optimizer is None there and adam"]),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, ["a is", "b is", "c is", "and 2 more"]),
    ],
)
def test_another_config_does_not(tmp_path, change, words):
    manifest.write(tmp_path, CONFIG, "x.py", [])
    with pytest.raises(UserError, match="another config") as error:
        manifest.check_same(tmp_path, {**CONFIG, **change})
    assert all(word in str(error.value) for word in words), error.value
    manifest.check_same(tmp_path, {**CONFIG, **change}, may_change=(*change, "data.shape"))


HOLD = """
    import sys
    from deeplearn.training import manifest
    with manifest.lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_two_runs_in_one_workdir(tmp_path):
    workdir = tmp_path / "made" / "if need be"
    with manifest.lock(workdir):
        pass
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(workdir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"process {process.pid} is at work in .*--workdir"):
                with manifest.lock(workdir):
                    pass
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait()
        with manifest.lock(workdir):
            assert (workdir / manifest.LOCK).read_text() == str(os.getpid())


def test_a_disk_without_locks(tmp_path, monkeypatch):
    """Such as those that the machines of a cluster share may be."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="cannot write .*: Function not implemented"), manifest.lock(tmp_path):
        pass


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*: (File exists|Not a directory)"):
        with manifest.lock(tmp_path / "file"):
            pass


def test_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / ".manifest.new.json").symlink_to("/dev/full")
    with pytest.raises(UserError, match="manifest.json: No space left on device"):
        manifest.write(tmp_path, CONFIG, "x.py", [])
    assert not manifest.exists(tmp_path)
