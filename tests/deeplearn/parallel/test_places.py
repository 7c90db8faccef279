"""Where a process finds its place among several: by flags, or by its cluster."""

import importlib.util
import os
import socket
import types

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from deeplearn.commands import cluster
from deeplearn.errors import UserError
from deeplearn.parallel import processes


@pytest.mark.parametrize("machines, devices", [(["a", "b"], None), (["a", "a"], [0])])
def test_a_machine_of_its_own_is_all_of_it(monkeypatch, machines, devices):
    """JAX gives each process of SLURM and Open MPI one accelerator, also one that is alone on its machine."""
    told = {}
    monkeypatch.setattr(processes, "_wire", None)
    monkeypatch.setattr(processes.wires, "meet", lambda *_: "wire")
    monkeypatch.setattr(processes.wires, "gathered", lambda wire, name: machines)
    monkeypatch.setattr(processes.wires, "close", lambda wire: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **_: told.update(devices=place[3]))
    with processes.together(processes.Place("a:1", 2, 0, [0]), {}, 1):
        pass
    assert told == {"devices": devices}


@pytest.mark.parametrize("rank, order", [(0, ["made", "said"]), (1, ["said", "made"])])
def test_process_0_has_the_first_turn(monkeypatch, rank, order):
    """The others find the files that it has made."""
    done = []
    monkeypatch.setattr(processes, "_wire", types.SimpleNamespace(rank=rank))
    monkeypatch.setattr(processes.wires, "gathered", lambda wire, value: done.append("said"))
    processes.in_turn(lambda: done.append("made"))
    assert done == order


@pytest.fixture
def given():
    """`given(**flags)`: the Place by these flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def given(**values):
        with flagsaver.flagsaver(**values):
            return cluster.place()

    return given


def test_place_by_flags(given):
    assert given(coordinator="10.0.0.2:80", processes=4, process=3) == processes.Place("10.0.0.2:80", 4, 3)
    assert given(processes=1) is None


@pytest.mark.parametrize(
    "values, said",
    [
        ({"processes": 2, "process": 0}, "--coordinator is missing"),
        ({"coordinator": "a:1", "process": 0}, "--processes is missing"),
        ({"coordinator": "a:1", "processes": 2}, "--process is missing"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "numbered from 0 to 1"),
        ({"coordinator": "a", "processes": 2, "process": 1}, "--coordinator=a is not of the form HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(given, values, said):
    with pytest.raises(UserError, match=said):
        given(**values)


CLUSTERS = ("SLURM", "OMPI", "KUBERNETES", "JOB_", "TPU", "MEGASCALE", "JAX_COORDINATOR")
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[03-06]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}
TPU = {
    "TPU_WORKER_HOSTNAMES": "localhost,10.0.0.3",
    "TPU_WORKER_ID": "1",
    "TPU_SKIP_MDS_QUERY": "1",  # as GKE sets it
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    "MEGASCALE_NUM_SLICES": "1",
    "MEGASCALE_SLICE_ID": "0",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def environment(monkeypatch):
    """`environment(**variables)`: these, and nothing else of a cluster."""

    def environment(**variables):
        for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return environment


@pytest.mark.parametrize("variables", [{}, SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, POD])
def test_nothing_is_found_where_there_is_nothing(environment, monkeypatch, variables):
    """And nobody is asked: a laptop's start is as it was."""
    environment(**variables)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("the network was asked"))
    assert processes.found(1) is None


def test_slurm_is_found(environment):
    environment(**SLURM)
    place = processes.found(1)
    assert place == processes.Place(place.coordinator, 4, 2, [1]) and place.coordinator.startswith("node03:")


def test_a_pod_of_tpus_is_found(environment, monkeypatch):
    environment(**TPU)
    monkeypatch.setattr("jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", True)
    assert processes.found(1) == processes.Place("localhost:8482", 2, 1)


@pytest.mark.parametrize("index", [{}, {"JOB_COMPLETION_INDEX": "1"}])
def test_a_pod_that_cannot_see_the_others(environment, monkeypatch, index):
    """It is alone only where it is of no job."""

    def refuse(*_):
        raise RuntimeError("403: Forbidden\nReason: forbidden")

    environment(**POD, **index)
    monkeypatch.setattr("jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params", refuse)
    if not index:
        assert processes.found(1) is None
        return
    with pytest.raises(UserError, match=r"cannot tell the other processes of this cluster \(403: Forbidden\); or give"):
        processes.found(1)


@pytest.mark.skipif(importlib.util.find_spec("kubernetes") is not None, reason="kubernetes is installed")
def test_a_kubernetes_job_without_the_package(environment):
    environment(**POD, JOB_COMPLETION_INDEX="1")
    with pytest.raises(UserError, match="pip install kubernetes; or give --coordinator, --processes and --process"):
        processes.found(1)
