"""DEEPLEARN_TOKEN of the processes of a run: the same on all workers, new at each start, and not printed."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deeplearn.cloud import gcloud, life
from tests.deeplearn.cloud.standin import ASKED, COMMAND, RUN, calls, state, workers

STARTED = re.compile(r"--command=DEEPLEARN_TOKEN=(\S+) bash \S*worker\.sh start env (.*)")
START = ("--do=start", *ASKED, f"--command={COMMAND}")


def starts(folder):
    """(token, command) of each start."""
    words = [word for kind, argv in calls(folder) if kind == "start" for word in argv if word.startswith("--command=")]
    return [STARTED.fullmatch(word).groups() for word in words]


def test_each_start_has_a_token_of_its_own(cloud, folder):
    looks = [workers("new"), workers("running"), workers("lost"), workers("lost"), workers("running"), workers("0")]
    status, out, err, _ = cloud(*RUN, describe=[state("ACTIVE")], status=looks)
    (first, command), (second, again) = starts(folder)
    assert (status, err) == (0, "") and first != second and command == again == f"python -m deeplearn {COMMAND}"
    for token in (first, second):
        assert re.fullmatch("[0-9a-f]{32}", token) and token not in out


@pytest.mark.parametrize(
    "flags, variables",
    [
        ((), {"DEEPLEARN_TOKEN": "secret"}),
        (("--env=DEEPLEARN_TOKEN=secret",), {}),
        (("--env", "A=b", "--env", "DEEPLEARN_TOKEN=secret"), {"DEEPLEARN_TOKEN": "another"}),
    ],
)
def test_the_users_token(cloud, start, folder, flags, variables):
    """It is passed on like the others; a dry run and what is printed after Ctrl-C do not show it."""
    cloud(*START, *flags, variables=variables)
    ((token, command),) = starts(folder)
    assert token == "secret" and "TOKEN" not in command
    status, out, err, _ = cloud(*START, *flags, "--dry_run", variables=variables)
    assert status == 0 and "secret" not in out and "another" not in out and '"${DEEPLEARN_TOKEN:?}"' in out
    process = start(*RUN, "--every=1000", *flags, variables=variables, describe=[state("CREATING")])
    assert process.stdout.readline() == "mnist: CREATING\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "to go on: python -m deeplearn cloud --do=run" in err
    assert "secret" not in err + out and ("--env A=b" in err) == ("A=b" in flags)


def test_an_empty_token_is_none(cloud, folder):
    cloud(*START, "--env=DEEPLEARN_TOKEN=", variables={"DEEPLEARN_TOKEN": ""})
    ((token, _),) = starts(folder)
    assert re.fullmatch("[0-9a-f]{32}", token)


@pytest.mark.parametrize("variables", [{}, {"DEEPLEARN_TOKEN": "secret"}])
def test_a_dry_run_can_be_pasted(cloud, folder, variables):
    """This machine's shell makes the token, so that it is the same on all workers."""
    status, out, err, _ = cloud(*START, "--dry_run", "--env=A=it's $HOME", variables=variables)
    kept = {name: value for name, value in os.environ.items() if name != "DEEPLEARN_TOKEN"}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", out], env={**kept, **variables, "PATH": path}, check=True)
    ((token, command),) = starts(folder)
    assert re.fullmatch(variables.get("DEEPLEARN_TOKEN", "[0-9a-f]{32}"), token)
    assert command == f"""'A=it'"'"'s $HOME' python -m deeplearn {COMMAND}"""


def test_an_error_does_not_show_it():
    said = "ERROR: (gcloud.x) unrecognized arguments: --command=DEEPLEARN_TOKEN=secret bash worker.sh"
    assert "secret" not in str(gcloud.failure(gcloud.Tpu("a", "z"), said))


def test_the_command_gets_it_and_no_process_list_shows_it(home):
    token = life.new_token()
    code = "import os, time; print(os.environ['DEEPLEARN_TOKEN'], flush=True); time.sleep(600)"
    line = life.start(life.gcloud.Tpu("a", "z"), ["env", "A=b", "python3", "-c", code], token)
    (there,) = (word.removeprefix("--command=") for word in line if word.startswith("--command="))
    subprocess.run(["bash", "-c", there], cwd=home, env={**os.environ, "HOME": str(home)}, check=True)
    while token not in (home / "deeplearn-run" / "log").read_text():
        time.sleep(0.05)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if token.encode() in content(path)]


def content(path):
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
