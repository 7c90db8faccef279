"""The command as people run it, with a stand-in for gcloud on the PATH."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from deeplearn.cloud import gcloud, life
from tests.deeplearn.cloud.standin import ABSENT, ASKED, COMMAND, RUN, calls, refuses, says, state, workers

PACKED = ["git", "git"]
INSTALLED = ["scp", "install", "start"]
WATCHED = ["describe", "status"]


def test_the_happy_life(cloud, folder):
    status, out, err, kinds = cloud(
        *RUN,
        "--env=TFDS_DATA_DIR=gs://bucket/data",
        describe=[ABSENT, state("WAITING_FOR_RESOURCES"), state("PROVISIONING"), state("ACTIVE")],
        status=[workers("new", "new"), workers("running", "running"), workers("0", "running"), workers("0", "0")],
    )
    assert (status, err) == (0, "")
    waited = ["describe"] * 2
    assert kinds == [*PACKED, "describe", "create", *waited, *WATCHED, *INSTALLED, *WATCHED * 3, "delete"]
    made = dict(calls(folder))
    assert made["create"] == shlex.split(
        "compute tpus queued-resources create mnist --node-id=mnist --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a --quiet"
    )
    (there,) = (word for word in made["start"] if word.startswith("--command="))
    assert there.endswith(f"worker.sh start env TFDS_DATA_DIR=gs://bucket/data python -m deeplearn {COMMAND}")
    assert {"--worker=all", "--scp-flag=-oServerAliveInterval=15"} <= {*made["scp"]}
    for kind in (*INSTALLED[1:], "status"):
        assert {"--worker=all", "--ssh-flag=-oServerAliveInterval=15"} <= {*made[kind]}
    for said in ("WAITING_FOR_RESOURCES", "2 workers; t-w-0 running: step 0", "the command is done", "deleted"):
        assert f"mnist: {said}\n" in out


LOSSES = {
    "suspended": ([state("ACTIVE"), state("SUSPENDING"), state("SUSPENDED")], [workers("running")], None),
    "failed": ([state("ACTIVE"), state("FAILED")], [workers("running")], None),
    "shut down": (
        [state("ACTIVE"), state("ACTIVE"), state("SUSPENDED")], [workers("running"), workers("143")], None,
    ),
    "crashed with it": (
        [state("ACTIVE"), state("ACTIVE"), state("SUSPENDED")], [workers("running"), workers("1")], None,
    ),
    "its node is gone": (
        [state("ACTIVE")] * 2, [workers("running"), refuses("ssh", 255)], [says("PREEMPTED\n")],
    ),
    "its node is deleted": (
        [state("ACTIVE")] * 2, [workers("running"), refuses("ssh", 255)], [ABSENT],
    ),
}  # fmt: skip


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_taken_away_is_asked_for_again(cloud, folder, loss, times):
    described, looked, node = LOSSES[loss]
    status, out, err, kinds = cloud(
        *RUN,
        describe=[*[*described, ABSENT] * times, state("CREATING"), state("ACTIVE")],
        status=[*looked * times, workers("new"), workers("running"), workers("0")],
        **({"node": node} if node else {}),
    )
    assert (status, err) == (0, ""), out
    assert kinds.count("delete") == times + 1 and kinds.count("create") == times
    assert kinds[-len(WATCHED) * 2 - len(INSTALLED) - 1 :] == [*INSTALLED, *WATCHED * 2, "delete"]
    assert kinds[:2] == PACKED and kinds.count("git") == 2  # the commit that began is the one that goes on
    created = [argv for kind, argv in calls(folder) if kind == "create"]
    assert all(argv == created[0] for argv in created)


def test_a_machine_that_began_again_goes_on(cloud):
    """Two looks, for a machine that is being taken away looks like that too."""
    looks = [workers("running", "lost")] * 2
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=[*looks, workers("0", "0")])
    assert (status, err) == (0, "")
    assert kinds == [*PACKED, *WATCHED * 2, "start", *WATCHED, "delete"]


def test_a_tpu_that_is_always_lost(cloud):
    why = {"error": {"code": 8, "message": "There is no more capacity\nin the zone."}}
    status, out, err, kinds = cloud(*RUN, describe=[state("FAILED", failedData=why)])
    assert status == 2 and err.count("\n") == 1 and "mnist: FAILED: There is no more capacity in the zone.\n" in out
    assert err.startswith("error: lost 4 times, more than --retries") and "--do=delete" in err
    assert kinds.count("delete") == 3


PASSES = [
    "UNAVAILABLE: try later",
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Get requests' and limit 'Get requests per minute'",
    "There was a problem refreshing your current auth tokens: Max retries exceeded with url: /token\n"
    "Please run:\n\n  $ gcloud auth login\n\nto obtain new credentials.",
]


def test_a_connection_that_comes_back(cloud):
    broken = refuses("[/usr/bin/ssh] exited with return code [255].", 255)
    status, out, err, kinds = cloud(
        *RUN,
        "--retries=6",
        describe=[state("ACTIVE"), *map(refuses, PASSES), state("ACTIVE")],
        status=[broken, says("no worker says anything"), broken, workers("running"), workers("0")],
        node=[says("READY\n")],
    )
    assert (status, err) == (0, "")
    assert out.count("will try again") == 6 and "delete" not in kinds[:-1]


def test_a_connection_that_does_not_come_back(cloud):
    status, out, err, kinds = cloud(
        *RUN, describe=[state("ACTIVE")], status=[refuses("timed out", 255)], node=[says("READY\n")]
    )
    assert status == 2 and err.count("\n") == 1
    assert "4 tries in a row failed" in err and "timed out" in err and "mnist is left as it is" in err
    assert "delete" not in kinds


def test_what_cannot_be_installed(cloud):
    status, out, err, kinds = cloud(
        *RUN,
        "--retries=50",
        describe=[state("ACTIVE")],
        status=[workers("new")],
        install=[[1, "", "no such package\n##### Command execution on worker 0 failed with exit status 1.\n"]],
    )
    assert status == 2 and "no such package" in err and kinds.count("install") == life.INSTALLS


def test_the_last_try_to_install_is_one(cloud):
    """What fails after it has been installed is no failure to install."""
    broken = [1, "", "no such package\n"]
    status, out, err, kinds = cloud(
        *RUN,
        describe=[state("ACTIVE")] * life.INSTALLS + [refuses("UNAVAILABLE"), state("ACTIVE")],
        status=[workers("new")] * life.INSTALLS + [workers("running"), workers("0")],
        install=[broken] * (life.INSTALLS - 1) + [says("")],
    )
    assert (status, err) == (0, "") and kinds.count("install") == life.INSTALLS


@pytest.mark.parametrize("how", ["stopped", "0", "2", "1"])
def test_what_had_ended_before_begins_again(cloud, how):
    """On a TPU that was kept: with the last commit, whatever ended there and how."""
    looks = [workers(how), workers("running"), workers("0")]
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=looks)
    assert (status, err) == (0, "")
    assert kinds == [*PACKED, *WATCHED, *INSTALLED, *WATCHED * 2, "delete"]


def test_a_log_of_any_bytes(cloud):
    """A line is cut after so many bytes, which need not be whole characters."""
    looks = [says("worker t-w-0 running \udcff\n"), workers("0")]
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=looks)
    assert (status, err) == (0, "") and "t-w-0 running: \ufffd\n" in out


@pytest.mark.parametrize("how, looks", [("2", 1), ("1", 2), ("-9", 2)])
@pytest.mark.parametrize("keep", [False, True])
def test_a_run_that_fails(cloud, how, looks, keep):
    """A user's mistake is believed at once; what a dying machine may bring about too, at the second look."""
    status, out, err, kinds = cloud(
        *RUN,
        *["--keep"] * keep,
        describe=[state("ACTIVE")],
        status=[workers("running", "running"), workers("running", how)],
        log=[says("error: unknown optimizer 'adan2'\n")],
    )
    assert status == 1 and "unknown optimizer 'adan2'" in out and f"t-w-1 {how}: step 1" in out
    assert kinds == [*PACKED, *WATCHED * (1 + looks), "log", *["delete"] * (not keep)]


def test_a_run_that_is_stopped_stays(cloud):
    looks = [workers("running", "running"), workers("stopped", "stopped")]
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=looks)
    assert status == 0 and "--do=run goes on" in out and "delete" not in kinds


@pytest.mark.parametrize(
    "answer, status, tries",
    [
        ([refuses("UNAVAILABLE"), says("")], 0, 2),
        ([refuses("UNAVAILABLE")] * 3 + [says("")], 0, 4),
        ([refuses("Reauthentication failed. Please run: gcloud auth login"), says("")], 0, 2),
        ([ABSENT], 0, 1),
        ([refuses("UNAVAILABLE")], 2, 4),
    ],
)
def test_the_last_deletion(cloud, answer, status, tries):
    """What is not deleted goes on costing; a resource that is gone is never asked for again. --retries=3."""
    looks = [workers("running"), workers("0")]
    ended, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=looks, delete=answer)
    assert ended == status and "create" not in kinds and kinds.count("delete") == tries
    assert ("goes on costing" in err and "gcloud compute tpus queued-resources delete mnist" in err) == (status == 2)


WATCHES = [
    ([ABSENT], [], 1, "there is no such TPU"),
    ([state("CREATING"), state("SUSPENDED")], [], 1, "it was taken away"),
    ([state("ACTIVE")], [workers("new")], 1, "nothing is installed"),
    ([state("ACTIVE")], [workers("lost")], 1, "the command is gone"),
    ([state("ACTIVE")], [workers("running"), workers("0")], 0, "the command is done"),
    ([state("ACTIVE")], [workers("stopped")], 0, "the command was stopped"),
    ([state("ACTIVE")], [workers("2")], 1, "the command failed"),
]


@pytest.mark.parametrize("described, looked, status, said", WATCHES)
def test_watch_changes_nothing(cloud, described, looked, status, said):
    ended, out, err, kinds = cloud("--do=watch", *ASKED, describe=described, status=looked or [says("")])
    assert (ended, err) == (status, "") and said in out
    assert set(kinds) <= {"describe", "status", "log"}


@pytest.mark.parametrize(
    "do, kinds",
    {
        "create": ["create"],
        "install": [*PACKED, "scp", "install"],
        "start": ["start"],
        "stop": ["stop"],
        "delete": ["delete"],
    }.items(),
)
def test_one_part(cloud, do, kinds):
    flags = (f"--do={do}", *ASKED, "--accelerator=v4-8", f"--command={COMMAND}")
    assert cloud(*flags) == (0, "", "", kinds)


@pytest.mark.parametrize("do", ["run", "create", "install", "start", "watch", "stop", "delete"])
def test_a_dry_run_prints_what_a_run_would_call(cloud, folder, do):
    """Printed, pasted into a shell and read again, each line is the call, except the token; and nothing is called."""
    flags = (*RUN[1:], f"--do={do}", "--env=A=it's $HOME")
    status, out, err, kinds = cloud(*flags, "--dry_run")
    assert (status, err, kinds) == (0, "", [])
    printed = [shlex.split(line) for line in out.splitlines()]
    cloud(*flags, describe=[ABSENT] * (do == "run") + [state("ACTIVE")], status=[workers("new"), workers("0")])
    token = re.compile(r"DEEPLEARN_TOKEN=([0-9a-f]{32}|\$\(openssl rand -hex 16\))")
    printed, called = (
        [[token.sub("DEEPLEARN_TOKEN=...", word) for word in line] for line in lines]
        for lines in (printed, [argv for _, argv in calls(folder)])
    )
    assert all(line[1:] in called for line in printed) and len(printed) >= 1
    once = [line for i, line in enumerate(called) if line not in called[:i]]
    assert sorted(once) == sorted(line[1:] for line in printed)


def test_a_dry_run_that_keeps_the_tpu(cloud):
    status, out, err, kinds = cloud(*RUN, "--keep", "--dry_run")
    assert status == 0 and "queued-resources create" in out and "delete" not in out


REFUSED = {
    "Permission denied on 'locations/us-west9-z' (or it may not exist).": "no zone us-west4-a",
    "PERMISSION_DENIED: Cloud TPU API has not been used in project 1": "gcloud services enable tpu.googleapis.com",
    "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login": "not authenticated",
    "There was a problem refreshing your current auth tokens: Reauthentication failed.": "gcloud auth login",
    "RESOURCE_EXHAUSTED: Quota 'TPUV5sPreemptibleLitepod' exhausted. Limit 0": "quota is used up",
    "ALREADY_EXISTS: Resource 'mnist' already exists": "the name mnist is in use",
    "INVALID_ARGUMENT: invalid accelerator type": "correct --accelerator",
    "The required property [project] is not currently set.": "give --project",
    "Cloud TPU received a bad request. the accelerator v4-9 was not found in zone us-west4-a": "correct --accelerator",
}


@pytest.mark.parametrize("text", REFUSED)
@pytest.mark.parametrize("do", ["create", "run"])
def test_a_refusal_is_one_line(cloud, do, text):
    create = [[1, "", f"ERROR: (gcloud.compute.tpus.queued-resources.create) {text}\n"]]
    status, out, err, kinds = cloud(*RUN, f"--do={do}", describe=[ABSENT], create=create)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert REFUSED[text] in err and text.splitlines()[0] in err
    assert kinds[-1] == "create" and "left as it is" not in err


def test_a_name_is_no_refusal():
    """It may hold any word."""
    text = "ERROR: (gcloud) NOT_FOUND: Resource 'projects/zone/locations/z/queuedResources/quota' was not found\n"
    assert type(gcloud.failure(gcloud.Tpu("quota", "z"), text)) is gcloud.Missing


def test_a_key_that_ssh_has_to_have(cloud):
    refused = [refuses('SSH Key is not present in the SSH agent. Please run "ssh-add KEY" to add it, and try again.')]
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=[workers("new")], scp=refused)
    assert status == 2 and "`ssh-add ~/.ssh/google_compute_engine`" in err and kinds.count("scp") == 1
    assert "mnist is left as it is" in err


def test_what_a_worker_says_is_no_refusal(cloud):
    """A quota of the disk there is none of the project's."""
    status, out, err, kinds = cloud(*RUN, "--do=install", install=[[1, "", "tar: Disk quota exceeded\n"]])
    assert status == 2 and err == "error: gcloud: tar: Disk quota exceeded; run the same command again\n"


@pytest.mark.parametrize("do", ["start", "stop"])
def test_nothing_is_installed(cloud, do):
    words = [127, "", "bash: deeplearn/deeplearn/cloud/worker.sh: No such file or directory\n"]
    status, out, err, kinds = cloud(*RUN, f"--do={do}", **{do: [words]})
    assert status == 2 and err == "error: nothing is installed on mnist yet; --do=install does it\n"


def test_gcloud_is_missing(cloud, folder):
    (folder / "bin" / "gcloud").unlink()
    status, out, err, kinds = cloud(*RUN)
    assert status == 2 and err.count("\n") == 1 and "gcloud is not on the PATH" in err and "gcloud auth login" in err


@pytest.mark.parametrize("answer, said", [([1, "", ""], "commit them first"), ([128, "", "fatal: no repo"], "no repo")])
def test_only_what_is_committed_is_sent(cloud, answer, said):
    status, out, err, kinds = cloud(*RUN, git=[answer])
    assert status == 2 and err.count("\n") == 1 and said in err and kinds == ["git"]


def test_another_tpu_of_that_name(cloud):
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE", kind="v4-8")])
    assert status == 2 and "is a v4-8, not a v5litepod-16" in err and kinds == [*PACKED, "describe"]


MISTAKES = {
    ("--do=fly",): "unknown verb of --do 'fly'",
    ("--command=evaluate --workdir=gs://b/r",): "--command='train",
    ("--command=train --workdir=runs/a",): "the workers' disks go with the TPU",
    ("--command=train 'a",): "cannot be read",
    ("--env=A",): "NAME=VALUE",
    ("--accelerator=x9-1",): "give --runtime",
    ("--name=-x",): "--name=-x is none that a TPU may have",
    ("--name=../x",): "--name=../x is none that a TPU may have",
    ("--every=-1",): "--every=-1",
    ("--retries=-1",): "--retries=-1",
    ("more",): "unexpected argument",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line(cloud, flags):
    status, out, err, kinds = cloud(*RUN, *flags)
    assert status == 2 and err.count("\n") == 1 and MISTAKES[flags] in err and not kinds


def test_ctrl_c_leaves_the_tpu(start, folder):
    flags = [*RUN, "--every=1000"]
    process = start(*flags, describe=[state("WAITING_FOR_RESOURCES")])
    while not calls(folder)[2:]:
        time.sleep(0.01)
    assert process.stdout.readline() == "mnist: WAITING_FOR_RESOURCES\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "mnist is left as it is" in err
    assert f"to go on: python -m deeplearn cloud {shlex.join(flags)}" in err
    assert "to delete it: gcloud compute tpus queued-resources delete mnist --force" in err
    assert not {"create", "delete"} & {kind for kind, _ in calls(folder)}


def test_the_command_imports_nothing_heavy():
    code = "import sys, deeplearn.commands.cloud, deeplearn.cloud.life; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "flax", "etils"} & set(json.loads(out.stdout))


def test_pauses_grow_to_a_limit():
    pauses = [life.pause(count, 30.0) for count in range(1, 60)]
    assert pauses == sorted(pauses) and pauses[0] == 30 and pauses[-1] == life.LONGEST


def test_pauses_between_losses_grow_until_the_command_runs(monkeypatch):
    """However often the TPU is waited for meanwhile."""
    replace, wait = life.Look("replace", "FAILED", "FAILED"), life.Look("wait", "CREATING", "CREATING")
    runs, done = life.Look("wait", "step 1", "ACTIVE"), life.Look("done", "", "ACTIVE")
    looks = iter([replace, wait, replace, wait, replace, runs, replace, runs, done])
    monkeypatch.setattr(life, "look", lambda tpu: next(looks))
    monkeypatch.setattr(life, "carry_out", lambda tpu, lines: "")
    pauses = []
    life.follow(gcloud.Tpu("a", "z"), ["true"], life.Times(9, 1.0, pauses.append), lambda line: None)
    assert pauses == [1, 1, 2, 1, 4, 1, 1, 1]
