"""worker.sh on this machine, as one worker of a TPU would have it."""

import os
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from deeplearn.cloud import answers, life

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "flock", "setsid")), reason="needs util-linux"
)
SLEEPS = (sys.executable, "-c", "import time; print('step 1', flush=True); time.sleep(600)")
SAVES = (
    sys.executable,
    "-c",
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True)));"
    "print('step 1', flush=True); time.sleep(600)",
)


def call(home, *arguments):
    """What a verb prints."""
    line = ["bash", "deeplearn/deeplearn/cloud/worker.sh", *arguments]
    done = subprocess.run(
        line, cwd=home, env={**os.environ, "HOME": str(home)}, capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(home):
    """State and last line of the log, as `deeplearn cloud` reads them."""
    ((_, how, last),) = answers.workers(call(home, "status"))
    return how, last


def ended(home, how):
    while state(home)[0] == "running":
        time.sleep(0.05)
    return state(home)[0] == how


def says(home, last):
    while state(home)[1] != last:
        time.sleep(0.05)


def group(home):
    return -int((home / "deeplearn-run" / "group").read_text())


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_command_to_its_end(home, status):
    assert state(home) == ("new", "")
    call(home, "start", sys.executable, "-c", f"import os; print(os.getcwd()); os._exit({status})")
    assert ended(home, str(status))
    assert (home / "deeplearn-run" / "log").read_text() == call(home, "log")


def test_words_arrive_as_they_were_sent(home):
    """Through the quotes of gcloud's --command, the shell behind ssh, and the two of worker.sh."""
    words = ["it's", "a b", "$HOME", '"', "--config.optimizer=adamw(b1=0.8,weight_decay=0.1)"]
    code = "import sys; print(sys.argv[1:])"
    tpu = life.gcloud.Tpu("a", "z")
    (there,) = (
        word.removeprefix("--command=")
        for word in life.start(tpu, [sys.executable, "-c", code, *words])
        if word.startswith("--command=")
    )
    subprocess.run(["bash", "-c", there], cwd=home, env={**os.environ, "HOME": str(home)}, check=True)
    assert ended(home, "0") and state(home)[1] == str(words)


def test_the_environment_of_the_command(home):
    code = "import os, shutil; print(os.environ['A'], os.environ['PATH'].split(':')[0])"
    call(home, "start", "env", "A=b c", sys.executable, "-c", code)
    assert ended(home, "0") and state(home)[1] == f"b c {home}/deeplearn/.venv/bin"


def test_it_outlives_its_caller_until_it_is_stopped(home):
    call(home, "start", *SAVES)
    says(home, "step 1")
    assert state(home)[0] == "running"
    call(home, "stop")
    assert state(home) == ("stopped", "saved")


def test_a_shut_down_is_not_the_end_of_the_run(home):
    """The command ends with 0 after SIGTERM, for it has saved: it is not done for all that."""
    call(home, "start", *SAVES)
    says(home, "step 1")
    os.killpg(-group(home), 15)
    assert ended(home, "143") and state(home)[1] == "saved"
    call(home, "start", *SLEEPS)
    assert state(home)[0] == "running"


def test_what_was_killed_is_lost(home):
    call(home, "start", *SLEEPS)
    says(home, "step 1")
    os.killpg(-group(home), 9)
    assert ended(home, "lost")


def test_what_is_lost_after_it_was_stopped_and_started(home):
    call(home, "start", *SAVES)
    says(home, "step 1")
    call(home, "stop")
    call(home, "start", *SLEEPS)
    says(home, "step 1")
    os.killpg(-group(home), 9)
    assert ended(home, "lost")


def test_starting_again_ends_what_is_left(home):
    call(home, "start", *SAVES)
    says(home, "step 1")
    call(home, "start", sys.executable, "-c", "print('second')")
    assert ended(home, "0")
    assert (home / "deeplearn-run" / "log").read_text() == "step 1\nsaved\nsecond\n"


@pytest.mark.parametrize("status", [0, 3])
def test_in_the_foreground(home, status):
    """Where a home directory need not be: nothing is written."""
    line = [
        "bash",
        "deeplearn/deeplearn/cloud/worker.sh",
        "run",
        sys.executable,
        "-c",
        f"import os; os._exit({status})",
    ]
    assert subprocess.run(line, cwd=home, env={**os.environ, "HOME": "/dev/null"}).returncode == status


def test_in_the_foreground_a_shut_down_is_not_the_end_of_the_run(home):
    line = ["bash", "deeplearn/deeplearn/cloud/worker.sh", "run", *SAVES]
    environment = {**os.environ, "HOME": str(home)}
    process = subprocess.Popen(line, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step 1\n"
    process.terminate()
    assert process.communicate(timeout=60)[0] == "saved\n" and process.returncode == 143


def test_in_the_foreground_it_waits_for_the_save(home):
    """However often it is told to end: with it the machine goes."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(0.6)\n"
        "    sys.exit(pathlib.Path('saved').touch())\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('step 1', flush=True)\n"
        "time.sleep(600)"
    )
    line = ["bash", "deeplearn/deeplearn/cloud/worker.sh", "run", sys.executable, "-c", code]
    process = subprocess.Popen(line, cwd=home, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step 1\n"
    for _ in range(3):
        process.terminate()
        time.sleep(0.1)
    assert process.wait(timeout=60) == 143 and (home / "saved").exists()
    process.communicate()


SEPARATORS = [*"\r\x0b\x0c\x1c\x85\u2028\0\x1b\x08"]
LOGS = {
    **{repr(character): f"step 1{character}worker b lost\n".encode() for character in SEPARATORS},
    "invalid UTF-8": b"step 1 \xff\xc2\n",
    "Windows' line ends": b"step 1\r\n",
    "a line that is being written": b"step 0\nstep 1",
    "a progress bar": b"50%\r" * 1_000_000 + b"step 1\r",
    "a long line": b"x" * 10_000_000 + b"\nstep 1 " + b"x" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("name", LOGS)
def test_a_log_of_any_bytes_is_one_line(home, name):
    call(home, "start", "true")
    assert ended(home, "0")
    (home / "deeplearn-run" / "log").write_bytes(LOGS[name])
    line = ["bash", "deeplearn/deeplearn/cloud/worker.sh", "status"]
    done = subprocess.run(line, cwd=home, env={**os.environ, "HOME": str(home)}, capture_output=True, check=True)
    assert done.stdout.startswith(b"worker ") and done.stdout.count(b"\n") == 1 and len(done.stdout) < 2000
    assert done.stderr == b"" and not set(done.stdout) & {0, 8, 11, 12, 13, 27, 28}
    ((_, how, last),) = answers.workers(done.stdout.decode(errors="replace"))
    assert how == "0" and (last.startswith(("step 1", "worker b lost", "x")) or name == "empty")
    assert len(call(home, "log")) <= 100_000


def ask(home, **variables):
    """What the command line of `life.status` prints, in the shell of a worker."""
    line = life.status(life.gcloud.Tpu("a", "z"))
    (there,) = (word.removeprefix("--command=") for word in line if word.startswith("--command="))
    environment = {**os.environ, "HOME": str(home), **variables}
    return subprocess.run(["bash", "-c", there], cwd=home, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("hostname", ["a b", "a running b", "a\u2028b", "a\nworker c lost", "", "\x1b[31ma"])
@pytest.mark.parametrize("installed", [True, False])
def test_a_host_of_any_name_is_one_word(home, hostname, installed):
    (home / "bin").mkdir()
    (home / "bin" / "hostname").write_text(f"#!/bin/bash\nprintf %s {shlex.quote(hostname)}\n")
    (home / "bin" / "hostname").chmod(0o755)
    if not installed:
        shutil.rmtree(home / "deeplearn")
    out = ask(home, PATH=f"{home / 'bin'}:{os.environ['PATH']}").stdout
    assert [how for _, how, _ in answers.workers(out)] == ["new"] and out.count("\n") == 1


@pytest.mark.parametrize("text", ["", "\n", "1 2", "zero", "-"])
@pytest.mark.parametrize("asked, expected", [(False, "lost"), (True, "stopped")])
def test_a_damaged_exit_status_is_none(home, text, asked, expected):
    call(home, "start", "true")
    assert ended(home, "0")
    (home / "deeplearn-run" / "exit").write_text(text)
    if asked:
        (home / "deeplearn-run" / "asked").touch()
    assert state(home)[0] == expected


def test_a_worker_whose_script_fails_is_not_new(home):
    """Its command may be running; gcloud fails, and is asked again."""
    (home / "deeplearn" / "deeplearn" / "cloud" / "worker.sh").write_text("exit 3")
    done = ask(home)
    assert (done.returncode, done.stdout) == (3, "")


def test_a_worker_without_the_project_is_new(tmp_path):
    (there,) = (word.removeprefix("--command=") for word in life.status(life.gcloud.Tpu("a", "z")) if "status" in word)
    out = subprocess.run(["bash", "-c", there], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert [how for _, how, _ in answers.workers(out)] == ["new"]


def test_a_bundle_brings_the_last_commit(tmp_path, monkeypatch):
    """What the workers clone has the history, so that a manifest names the commit. `install` itself downloads."""

    def git(*words):
        names = ["-c", "user.name=n", "-c", "user.email=e@x"]
        line = ["git", "-C", str(tmp_path / "project"), *names, *words]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    place = tmp_path / "project" / "deeplearn" / "cloud"
    place.mkdir(parents=True)
    (place / "worker.sh").write_text('echo "$1" > installed')
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(life, "ROOT", tmp_path / "project")
    monkeypatch.setattr(life, "source", lambda tpu: str(tmp_path / "deeplearn.bundle"))
    tpu = life.gcloud.Tpu("a", "z")
    life.carry_out(tpu, life.pack(tpu))
    (there,) = (word.removeprefix("--command=") for word in life.install(tpu)[1] if word.startswith("--command="))
    subprocess.run(["bash", "-c", there], cwd=tmp_path, check=True)
    assert (tmp_path / "installed").read_text() == "install\n"
    cloned = ["git", "-C", str(tmp_path / "deeplearn"), "rev-parse", "HEAD"]
    assert subprocess.run(cloned, capture_output=True, text=True, check=True).stdout.strip() == git("rev-parse", "HEAD")
    (place / "worker.sh").write_text("changed")
    with pytest.raises(life.UserError, match="commit them first"):
        life.carry_out(tpu, life.pack(tpu))
