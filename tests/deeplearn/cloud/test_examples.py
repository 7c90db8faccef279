"""The scripts and the examples for SLURM and Kubernetes, by what checkers there are."""

import os
import shutil
import subprocess

import pytest

from deeplearn.cloud import life

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


@needs("sbatch")
def test_slurm_would_take_it():
    check("sbatch", "--test-only", HERE / "slurm.sh", "train")


# Stands for srun and scontrol: notes the words, or plays the command that is to run.
SRUN = """#!/bin/bash
echo "srun $*" >> "$NOTES"
exec {played}
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$NOTES"
"""


@pytest.fixture
def slurm(tmp_path):
    """`slurm(played, *words)`: the running slurm.sh, and the notes of its calls."""
    notes = tmp_path / "notes"

    def slurm(played, *words):
        (tmp_path / "srun").write_text(SRUN.format(played=played))
        (tmp_path / "scontrol").write_text(SCONTROL)
        for name in ("srun", "scontrol"):
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        place = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "NOTES": str(notes)}
        return subprocess.Popen(
            ["bash", HERE / "slurm.sh", *words], env={**os.environ, **place}, stdout=subprocess.PIPE, text=True
        ), notes

    return slurm


@pytest.mark.parametrize("played, status", [("true", 0), ("bash -c 'exit 3'", 3)])
def test_a_job_ends_as_its_command_does(slurm, played, status):
    process, notes = slurm(played, "train", "--workdir=a b")
    process.communicate(timeout=60)
    assert process.returncode == status
    assert notes.read_text() == ("srun --kill-on-bad-exit=1 .venv/bin/python -m deeplearn train --workdir=a b\n")


def test_a_job_whose_time_is_up_saves_and_queues_again(slurm):
    saves = "bash -c 'trap \"sleep 0.2; echo saved; exit 0\" TERM; echo ready; while :; do sleep 0.05; done'"
    process, notes = slurm(saves, "train")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(10)  # SIGUSR1
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "saved\n")
    assert notes.read_text().splitlines()[1:] == ["scontrol requeue 7"]


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
