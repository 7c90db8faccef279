"""What the commands share, without a process of their own; runs.build_again is in ../identity/test_identity.py."""

import jax
import pytest

from deeplearn.commands import runs
from deeplearn.errors import UserError
from deeplearn.parallel import compile_cache
from deeplearn.training import checkpoints, manifest, program
from tests.deeplearn.commands.conftest import EXPERIMENT


@pytest.mark.parametrize(
    "named, used",
    [
        (None, "~/.cache/deeplearn/compiled"),
        ("", "~/.cache/deeplearn/compiled"),
        ("/scratch/compiled", "/scratch/compiled"),
    ],
)
def test_where_compiled_programs_are_kept(monkeypatch, named, used):
    kept = []
    monkeypatch.setattr(compile_cache, "enable", kept.append)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if named is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    runs.prepare_jax()
    assert kept == [used]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The directory of a run on one device, with the checkpoint of its beginning."""
    from deeplearn import experiment, identity
    from deeplearn.identity import source as sources

    folder = tmp_path_factory.mktemp("begun")
    (folder / "fragile.py").write_text(EXPERIMENT)
    source = sources.collect(folder / "fragile.py")
    config = experiment.configure(source, {"mesh": "data:1", "steps": 2, "batch_size": 16})
    built = runs.build(source, config)
    identified = runs.identify(built, source)
    (folder / "run").mkdir()
    with manifest.lock(folder / "run"):
        admitted = manifest.admit(folder / "run", identified, config.to_dict(), source, ["train"])
        manifest.write(folder / "run", admitted, source)
        with checkpoints.open(folder / "run" / "checkpoints", mode="max", identity=identity.digest(identified)) as kept:
            assert checkpoints.save(kept, 0, program.build(built).init(), {}, None)
    return folder


@pytest.mark.parametrize("mesh, devices", [(None, 1), ("", 8), ("data:2", 2)])
def test_a_run_is_restored_on_the_devices_that_are_named(begun, mesh, devices):
    """Those of the run without a name; an empty one is all of them."""
    _, built, restored = runs.restore(begun / "run", runs.open_run(begun / "run"), "last", mesh)
    assert built.mesh.size == devices and restored.step == 0


def test_a_file_that_changed_is_not_executed_as_the_runs(begun):
    file = begun / "fragile.py"
    assert runs.open_run(begun / "run").source.experiment == file
    file.write_text(EXPERIMENT + "1 / 0\n")
    try:
        with pytest.raises(UserError, match="experiment changed or is gone"):
            runs.open_run(begun / "run")
        assert runs.open_run(begun / "run", execute_copy=True).source.experiment != file
    finally:
        file.write_text(EXPERIMENT)
