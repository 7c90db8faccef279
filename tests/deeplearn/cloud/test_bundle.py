"""The bundle of the last commit on this machine."""

import stat
import subprocess
from pathlib import Path

import pytest

from deeplearn.cloud import bundle, life
from deeplearn.cloud.gcloud import Tpu
from deeplearn.errors import UserError
from tests.deeplearn.cloud.standin import ASKED, calls

TPUS = [
    Tpu("mnist", "us-west4-a"),
    Tpu("mnist", "us-west4-b"),
    Tpu("mnist", "us-west4-a", project="p"),
    Tpu("mnist", "us-west4-a", project="example.com:p"),
    Tpu("mnist", "a", project="p,us-west4"),
    Tpu("a,mnist", "p", project="us-west4"),
    Tpu("mnist", "..", project="../.."),
    Tpu("mnist", "", project="p/us-west4-a"),
]


def test_no_two_tpus_share_a_bundle(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = [Path(bundle.source(tpu)) for tpu in TPUS]
    assert len({*files}) == len(files)
    assert {file.parent for file in files} == {tmp_path / "deeplearn" / "bundles"}  # no ":" and ".." reach scp
    assert not [file for file in files if ":" in file.name or "/" in file.name]


def test_the_project_of_the_environment_counts(monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "p")
    assert bundle.source(TPUS[0]) == bundle.source(TPUS[2])


def test_the_directory_is_the_users_alone(cloud, folder):
    """Also where it is there already, and other users can read it."""
    directory = folder / "cache" / "deeplearn" / "bundles"
    for _ in range(2):
        status, out, err, _ = cloud("--do=install", *ASKED)
        assert (status, err) == (0, "") and stat.S_IMODE(directory.stat().st_mode) == 0o700
        directory.chmod(0o755)
    written = {argv[argv.index("create") + 2] for kind, argv in calls(folder) if "bundle" in argv}
    copied = {argv[argv.index("scp") + 1] for kind, argv in calls(folder) if kind == "scp"}
    assert written == copied == {str(directory / ",us-west4-a,mnist.bundle")}


def test_a_directory_that_cannot_be_made_is_one_line(cloud, folder):
    (folder / "cache").write_text("text")
    status, out, err, kinds = cloud("--do=install", *ASKED)
    assert status == 2 and err.count("\n") == 1 and "set XDG_CACHE_HOME to a directory of your own" in err and not kinds


def test_a_bundle_that_is_being_written_is_left_alone(tmp_path, monkeypatch):
    """Git itself locks the file: the old content stays until the new one is whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(life, "ROOT", tmp_path / "project")
    git = ["git", "-C", str(tmp_path / "project"), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run(["git", "init", "-q", str(tmp_path / "project")], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    tpu = Tpu("mnist", "us-west4-a")
    file = Path(bundle.source(tpu))
    bundle.make_private(file.parent)
    file.write_text("old")
    lock = file.with_name(f"{file.name}.lock")
    lock.write_text("half of the n")
    with pytest.raises(UserError, match=f"another command is writing the bundle; .* delete {lock} if"):
        life.carry_out(tpu, life.pack(tpu))
    assert (file.read_text(), lock.read_text()) == ("old", "half of the n")
    lock.unlink()
    life.carry_out(tpu, life.pack(tpu))
    assert b"git bundle" in file.read_bytes() and not lock.exists()
