import datetime
import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

from deeplearn import identity
from deeplearn.errors import UserError
from deeplearn.identity.source import Source
from deeplearn.training import checkpoints, manifest

CONFIG = {"seed": 3, "batch_size": 64, "mesh": "", "shape": (28, 28), "optimizer": None}
REST = {
    "source": {"experiment": "a"},
    "data": {"train": "x"},
    "versions": {"jax": "1"},
    "implementations": {"platform": "cpu"},
}


@pytest.fixture
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("project") / "mine.py"
    file.write_text("# an experiment")
    return Source(file)


@pytest.fixture
def claim(tmp_path, source):
    """`claim(config={...}, data={...}, accept=[...])`: start the run in tmp_path with these changes of its identity."""

    def claim(config=(), accept=(), command=("train",), **sections):
        config = {**CONFIG, **dict(config)}
        identified = {"config": {name: value for name, value in config.items() if name != "mesh"}, **REST, **sections}
        identified = json.loads(json.dumps(identified))
        admitted = manifest.admit(tmp_path, identified, config, source, command, accept)
        manifest.write(tmp_path, admitted, source)
        return admitted

    return claim


def test_what_is_written_is_read(tmp_path, claim, source):
    command = ["deeplearn", "train", "--workdir=a b", "--config.name=it's"]
    written = claim(command=command)
    assert written == manifest.read(tmp_path)
    assert written["kind"] == "run" and written["seed"] == 3 and written["experiment"] == str(source.experiment)
    assert written["config"] == {**CONFIG, "shape": [28, 28]} and shlex.split(written["command"]) == command
    assert written["devices"] == {"platform": "cpu", "kind": "cpu", "count": jax.device_count()}
    started = datetime.datetime.fromisoformat(written["started"])
    assert abs(datetime.datetime.now().astimezone() - started) < datetime.timedelta(minutes=1)
    assert os.uname().nodename not in written
    expected = {"config": {"seed": 3, "batch_size": 64, "shape": [28, 28], "optimizer": None}, **REST}
    assert manifest.current(written) == expected and written["id"] == identity.digest(expected)
    assert manifest.source_of(written) == source and manifest.ids(written) == {written["id"]}
    (copy,) = tmp_path.glob("source/*/mine.py")
    assert copy.read_text() == "# an experiment"


def test_a_config_that_the_experiment_fills_in(tmp_path, source):
    """As experiments/gpt3.py does: the run goes on, with the same flags and from its directory."""
    identified = {"config": {"seed": 3, "batch_size": 128}, **REST}
    for batch_size in (0, 0, 128):
        config = {"seed": 3, "batch_size": batch_size, "mesh": ""}
        manifest.write(tmp_path, manifest.admit(tmp_path, identified, config, source, ["train"]), source)
    written = manifest.read(tmp_path)
    assert written["config"] == {"seed": 3, "batch_size": 128, "mesh": ""} and len(written["resumed"]) == 2
    assert not any("changed" in launch for launch in written["resumed"])


def test_a_resumed_run_keeps_its_first_start(claim):
    first = claim(command=["first"])
    claim(command=["second"])
    third = claim(command=["third"], config={"mesh": "data:2"})
    assert [launch["command"] for launch in third["resumed"]] == ["second", "third"]
    assert {**third, "resumed": []} == first and len(manifest.ids(third)) == 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"config": {"batch_size": 128}}, r"config.batch_size is 64 there and 128 here; .*--config.batch_size=64"),
        ({"config": {"shape": [32, 32]}}, r"config.shape is \[28, 28\] there and \[32, 32\] here"),
        ({"config": {"optimizer": "adam", "seed": 0}}, "config.seed is 3 there and 0 here, config.optimizer is None"),
        ({"source": {"experiment": "b"}}, "source.experiment is a there and b here"),
        ({"data": {"train": "y"}}, "data.train is x there and y here"),
        ({"versions": {"jax": "2"}}, "versions.jax is 1 there and 2 here"),
        ({"implementations": {"platform": "tpu"}}, "implementations.platform is cpu there and tpu here"),
    ],
)
def test_another_identity_is_refused_or_accepted_and_recorded(tmp_path, claim, change, said):
    first = claim()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=said):
        claim(**change)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (section,) = change
    second = claim(**change, accept=[section])
    assert len(second["resumed"][0]["accepted"]) in (1, 2) and second["resumed"][0]["changed"].keys() == {section}
    assert manifest.ids(second) == {first["id"], second["resumed"][0]["id"]} and len(manifest.ids(second)) == 2
    third = claim(**change)  # what was accepted is what the run is now
    assert "accepted" not in third["resumed"][1] and third["resumed"][1]["id"] == second["resumed"][0]["id"]
    with pytest.raises(UserError, match=f"other {section}"):
        claim()


def test_the_config_at_the_last_start(claim):
    """With the mesh, and without a field that is no longer there: the experiment of now does not have it."""
    claim(config={"mesh": "data:2", "old": 1})
    written = claim(config={"mesh": "data:4", "new": 2}, accept=["config"])
    assert manifest.config_of(written) == {**CONFIG, "shape": [28, 28], "mesh": "data:2", "new": 2}


def test_the_identity_at_the_last_start(claim):
    for seed in (3, 4, 5):
        written = claim(config={"seed": seed}, accept=["config"])
    assert manifest.last_id(written) == written["resumed"][-1]["id"] == identity.digest(manifest.current(written))
    assert len(manifest.ids(written)) == 3 and manifest.config_of(written)["seed"] == 5


def test_of_an_old_directory_only_the_config_is_compared(tmp_path, claim, caplog):
    old = {"config": {**CONFIG, "shape": [28, 28]}, "experiment": "x.py", "seed": 3, "command": "c", "resumed": []}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="config.seed is 3 there and 4 here"):
        claim(config={"seed": 4})
    caplog.clear()
    written = claim()
    assert "cannot be proved" in caplog.text and None in manifest.ids(written)
    with pytest.raises(UserError, match="data.train is x there and y here"):  # from now on all is compared
        claim(data={"train": "y"})


def test_a_directory_knows_what_it_holds(tmp_path, claim):
    assert manifest.kind(tmp_path) is None
    claim()
    assert manifest.kind(tmp_path) == "run"
    for attempt in (lambda: manifest.read(tmp_path, "study"), lambda: manifest.write_study(tmp_path, {}, "s.py", [])):
        with pytest.raises(UserError, match="holds a run, not a study; `deeplearn evaluate`"):
            attempt()


def test_a_name_that_no_file_can_have():
    with pytest.raises(UserError, match="cannot read .*: File name too long"):
        manifest.kind("a" * 300)


def test_where_the_source_was_at_the_last_start(tmp_path, claim, source):
    """A file that moved is found in its new place; the copy in the directory is none that later starts look for."""
    claim()
    moved = source.experiment.rename(source.experiment.with_name("moved.py"))
    identified = {"config": {name: value for name, value in CONFIG.items() if name != "mesh"}, **REST}
    identified = json.loads(json.dumps(identified))
    for file in (moved, next(tmp_path.rglob("mine.py"))):
        written = manifest.admit(tmp_path, identified, CONFIG, Source(file), ["train"])
        manifest.write(tmp_path, written, Source(file))
        assert manifest.source_of(written).experiment == moved


@pytest.mark.parametrize("files", [{"study.json": {}}, {"manifest.json": {"config": {"workloads": {}}}}])
def test_a_run_does_not_begin_in_a_study(tmp_path, claim, files):
    """Also of directories that are older than the manifest's kind."""
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds a study, not a run; `deeplearn compare`"):
        claim()


def test_checkpoints_without_a_manifest(tmp_path, claim):
    """They are this run's, or nothing begins."""
    written = claim()
    with checkpoints.open(tmp_path / "checkpoints", identity=written["id"]) as manager:
        checkpoints.save(manager, 1, {"x": jnp.ones(2)}, {})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="has checkpoints, but no manifest.json"):
        claim(config={"seed": 4})
    assert not manifest.exists(tmp_path) and claim()["id"] == written["id"]
    with checkpoints.open(tmp_path / "checkpoints", identity="another") as manager:
        checkpoints.save(manager, 2, {"x": jnp.ones(2)}, {})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="has checkpoints, but no manifest.json"):  # one that is not its own suffices
        claim()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"7", b"null", b"{}", b'{"config": 1, "experiment": "x"}', b'{"config": {}}', b"\xff\xfe{}",
        b'{"config": {}, "experiment": 7}', b'{"config": {}, "experiment": "x", "resumed": 1}', b"[" * 100_000,
        b'{"config": {}, "experiment": "x", "resumed": ["y"]}', b'{"config": {"workloads": 1}, "experiment": "x"}',
        b'{"config": {}, "experiment": "x", "identity": []}', b'{"config": {}, "experiment": "x", "kind": []}',
        b'{"config": {}, "experiment": "x", "modules": [1]}', b'{"config": {}, "experiment": "x", "id": {}}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_one_line(tmp_path, claim, content):
    (tmp_path / "manifest.json").write_bytes(content)
    for attempt in (lambda: manifest.read(tmp_path), claim):
        with pytest.raises(UserError, match=f"{tmp_path}") as error:
            attempt()
        assert "\n" not in str(error.value) and "same command again" not in str(error.value)
    assert (tmp_path / "manifest.json").read_bytes() == content


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not a run: it has no manifest.json"):
        manifest.read(tmp_path)


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a run"):
        manifest.read(tmp_path / "file")


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


def test_a_full_disk(tmp_path, claim):
    (tmp_path / ".manifest.new.json").symlink_to("/dev/full")
    with pytest.raises(UserError, match="manifest.json: No space left on device"):
        claim()
    assert not manifest.exists(tmp_path)
