"""The scripts, gcloud's command lines, and the examples for SLURM and Kubernetes, by what checkers there are."""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest

from deeplearn.cloud import gcloud, life

HERE = life.ROOT / "deeplearn" / "cloud"
SCRIPTS = ["slurm.sh", "worker.sh"]


def needs(tool):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"needs {tool}")


def check(*line, **more):
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_it(name):
    check("bash", "-n", HERE / name)


@needs("shellcheck")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
    check("shellcheck", HERE / name)


@needs("gcloud")
def test_gcloud_has_every_flag(tmp_path):
    """By its own parser, which asks nobody."""
    tpu = gcloud.Tpu("mnist", "us-west4-a", "v5litepod-16", project="p", spot=True, create=("--network=n",))
    lines = [*life.steps("run", tpu, ["env", "A=b", "python"]), gcloud.node(tpu), life.tell(tpu, "stop")]
    lines = [[word for word in line if word != "--quiet"] for line in lines]  # in which it looks for a value
    commands = [{"command_string": shlex.join(line)} for line in lines if line[0] == "gcloud"]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    alone = {"CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1", "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1"}
    environment = {**os.environ, **alone, "CLOUDSDK_CONFIG": str(tmp_path)}
    line = ["gcloud", "meta", "lint-gcloud-commands"]
    if subprocess.run([*line, "--help"], capture_output=True, env=environment).returncode:
        pytest.skip("an SDK without the checker")
    found = json.loads(check(*line, f"--commands-file={tmp_path / 'commands.json'}", env=environment))
    assert len(found) == len(commands) and not [line["error_message"] for line in found if not line["success"]]


@needs("sbatch")
def test_slurm_would_take_it():
    check("sbatch", "--test-only", HERE / "slurm.sh", "train")


# Stand for SLURM's programs, and note their words. srun plays the command that is to run; told to end it kills that, as
# the real one does (SIGKILL to the tasks, in srun_job.c). scancel has a signal reach it.
STAND_INS = {
    "srun": """#!/bin/bash
echo "srun $*" >> "$NOTES"
trap 'kill -KILL $!' TERM
(echo "$BASHPID" > "$NOTES.task"; exec {played}) &
wait $!
""",
    "scontrol": """#!/bin/bash
echo "scontrol $*" >> "$NOTES"
""",
    "scancel": """#!/bin/bash
echo "scancel $*" >> "$NOTES"
kill -TERM "$(cat "$NOTES.task")"
""",
}


@pytest.fixture
def slurm(tmp_path):
    """`slurm(played, *words, **variables)`: the running slurm.sh, and the notes of its calls."""
    notes = tmp_path / "notes"

    def slurm(played, *words, **variables):
        for name, text in STAND_INS.items():
            (tmp_path / name).write_text(text.replace("{played}", played))
            (tmp_path / name).chmod(0o755)
        job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "32"}
        place = {**job, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes)}
        kept = {name: value for name, value in os.environ.items() if name != "DEEPLEARN_TOKEN"}
        environment = {**kept, **place, **variables}
        line = ["bash", HERE / "slurm.sh", *words]
        return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True), notes

    return slurm


@pytest.mark.parametrize("played, status", [("true", 0), ("bash -c 'exit 3'", 3)])
def test_a_job_ends_as_its_command_does(slurm, played, status):
    process, notes = slurm(played, "train", "--workdir=a b")
    process.communicate(timeout=60)
    assert process.returncode == status
    flags = "--kill-on-bad-exit=1 --cpus-per-task=32"
    assert notes.read_text() == f"srun {flags} .venv/bin/python -m deeplearn train --workdir=a b\n"


def test_a_job_whose_time_is_up_saves_and_queues_again(slurm):
    """The signal that announces it goes to the tasks, and not by way of srun; the queue has to wait for the save."""
    save = "sleep 0.2; echo saved | tee -a $NOTES; exit 0"
    saves = f"bash -c 'trap \"{save}\" TERM; echo ready; while :; do sleep 0.05; done'"
    process, notes = slurm(saves, "train")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(10)  # SIGUSR1
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "saved\n")
    assert notes.read_text().splitlines()[1:] == ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"]


def test_each_start_of_a_job_has_a_token_of_its_own(slurm):
    """In the environment of srun, of which no process list shows anything."""
    tokens = []
    played = "bash -c 'echo \"$DEEPLEARN_TOKEN $SLURM_EXPORT_ENV\"'"
    for _ in range(2):
        process, notes = slurm(played, "train", SLURM_EXPORT_ENV="NONE")
        token, export = process.communicate(timeout=60)[0].split()
        assert re.fullmatch("[0-9a-f]{32}", token) and export == "ALL" and token not in notes.read_text()
        tokens.append(token)
    assert tokens[0] != tokens[1]


def test_the_users_token_of_a_job_stays(slurm):
    process, _ = slurm("bash -c 'echo $DEEPLEARN_TOKEN'", "train", DEEPLEARN_TOKEN="a b")
    assert process.communicate(timeout=60)[0] == "a b\n"


def test_a_job_without_a_command_says_how():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(["bash", HERE / "slurm.sh"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("usage: sbatch ")


def test_slurm_is_told_what_jax_needs():
    """jax finds the processes of a SLURM job by the variables that srun sets: one process a node, as asked here."""
    from jax._src.clusters import slurm_cluster

    text = (HERE / "slurm.sh").read_text()
    named = (slurm_cluster._JOBID_PARAM, slurm_cluster._NODE_LIST, slurm_cluster._PROCESS_COUNT)
    for name in (*named, slurm_cluster._PROCESS_ID, slurm_cluster._LOCAL_PROCESS_ID):
        assert name in text
    assert "#SBATCH --ntasks-per-node=1\n" in text


# Of the JobSet API, v1alpha2: the fields of each level that may be there.
JOBSET = {
    (): {"apiVersion", "kind", "metadata", "spec", "status"},
    ("spec",): {
        "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator",
        "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies",
    },
    ("spec", "failurePolicy"): {"maxRestarts", "rules", "restartStrategy"},
    ("spec", "replicatedJobs", 0): {"name", "groupName", "template", "replicas", "dependsOn"},
    ("spec", "replicatedJobs", 0, "template"): {"metadata", "spec"},
}  # fmt: skip


@pytest.fixture
def jobset():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((HERE / "jobset.yaml").read_text())


@pytest.mark.parametrize("level", JOBSET)
def test_the_jobset_has_the_fields_of_its_api(jobset, level):
    for name in level:
        jobset = jobset[name]
    assert set(jobset) <= JOBSET[level]


def test_the_jobset_has_what_is_required(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["name"] and job["template"]["spec"]["template"]["spec"]["containers"][0]["image"]


def test_the_jobset_is_what_jax_needs(jobset):
    """Indexed pods, as many as the slice has machines, each with all of its machine's chips."""
    from jax._src.clusters import cloud_tpu_cluster

    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    across, down = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == across * down // chips
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert int(cloud_tpu_cluster.coordinator_port) in [port["containerPort"] for port in container["ports"]]


def test_the_jobset_takes_its_token_from_a_secret(jobset):
    """The one that the command in the file creates."""
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    reference = variable["valueFrom"]["secretKeyRef"]
    assert (variable["name"], "value" in variable) == ("DEEPLEARN_TOKEN", False)
    text = (HERE / "jobset.yaml").read_text()
    assert f"kubectl create secret generic {reference['name']} --from-file={reference['key']}=/dev/stdin" in text


def test_the_jobset_trains_what_there_is(jobset):
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    line = [*container["command"], *container["args"]]
    assert line[:7] == ["bash", "deeplearn/cloud/worker.sh", "run", "python", "-m", "deeplearn", "train"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in line[7:])
    assert (life.ROOT / line[1]).is_file()
    assert (life.ROOT / flags["config"]).is_file() and flags["workdir"].startswith("gs://")


@needs("kubeconform")
def test_kubeconform_takes_it():
    check("kubeconform", "-ignore-missing-schemas", HERE / "jobset.yaml")
