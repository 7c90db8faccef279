"""What a run keeps, in a bucket: Orbax's own storage too, by TensorStore's gs:// driver and a server that stands in."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn import files
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.training import checkpoints, logs, manifest, reading, stored
from tests.deeplearn import bucket


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder behind gs://."""
    root = tmp_path_factory.mktemp("buckets")
    with bucket.served(root) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment(address).items():
            patch.setenv(name, value)
        bucket.install(root)
        yield root


@pytest.fixture
def workdir(root, request):
    return f"gs://bucket/{request.node.name.partition('[')[0]}"


def there(root, workdir):
    """The names of the objects in a workdir."""
    prefix = workdir.removeprefix("gs://") + "/"
    return [name.removeprefix(prefix) for name in bucket.names(root) if name.startswith(prefix)]


def state(step):
    key = jax.random.key(3)
    return {"params": {"w": jnp.arange(6.0).reshape(2, 3) + step}, "empty": jnp.zeros((0, 2)), "key": key}


def same(restored, expected):
    def data(tree):
        return [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in tree]

    pairs = zip(data(jax.tree.leaves(restored)), data(jax.tree.leaves(expected)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def saved(manager, root, workdir, steps):
    for step in steps:
        assert checkpoints.save(manager, step, state(step), {"at": step}, metric=float(-step))
    checkpoints.wait(manager)
    return sorted({name.partition("/")[0] for name in there(root, workdir)})


def test_checkpoints(root, workdir):
    """The newest two and the best stay, of the others nothing; what is read is what was written."""
    with checkpoints.open(workdir, keep=2, mode="max") as manager:
        names = saved(manager, root, workdir, [1, 2, 3, 4])
        assert [int(name.partition("-")[0]) for name in names] == checkpoints.steps(manager) == [1, 3, 4]
        assert not list(manager.directory.glob("*tmp*"))
    with checkpoints.open(workdir, mode="max") as manager:  # as after a preemption
        latest, best = (
            restore(manager, state(0)) for restore in (checkpoints.restore_latest, checkpoints.restore_best)
        )
    assert (latest.step, latest.metadata, best.step) == (4, {"at": 4}, 1)
    assert same(latest.state, state(4)) and same(best.state, state(1))


def test_a_save_that_was_cut_off_is_none(root, workdir):
    """Nothing is renamed in a bucket: what has no commit file is not there, and is written again in its place."""
    with checkpoints.open(workdir) as manager:
        *_, last = saved(manager, root, workdir, [1, 2])
        (manager.directory / last / "commit_success.txt").unlink()
        stray = manager.directory / last / "state" / "stray"
        stray.write_text("of the save that was cut off")
        assert checkpoints.steps(manager) == [1]
        assert checkpoints.restore_latest(manager, state(0)).step == 1
        assert not manager.damaged
        saved(manager, root, workdir, [2])
        assert checkpoints.steps(manager) == [1, 2] and not stray.exists()
        assert same(checkpoints.restore_latest(manager, state(0)).state, state(2))


def test_a_damaged_checkpoint_is_skipped_and_saved_again(root, workdir):
    with checkpoints.open(workdir) as manager:
        *_, last = saved(manager, root, workdir, [1, 2])
        for name in there(root, workdir):
            if name.startswith(f"{last}/state/") and "/d/" in name:
                (manager.directory / name).write_bytes(b"no array")
        assert checkpoints.restore_latest(manager, state(0)).step == 1 and manager.damaged == {last}
        saved(manager, root, workdir, [2])
        assert checkpoints.restore_latest(manager, state(0)).step == 2 and not manager.damaged


def test_what_vanishes_or_cannot_be_read(root, workdir, monkeypatch):
    """The writer deletes the newest while it is read; then the server does not answer."""
    with checkpoints.open(workdir) as manager:
        names = saved(manager, root, workdir, [1, 2])
        arrays = reading._arrays

        def deleted(handler, path, item):
            if path.name == names[-1] and stored.is_complete(path):
                stored.set_aside(path)
            return arrays(handler, path, item)

        with monkeypatch.context() as patch:
            patch.setattr(reading, "_arrays", deleted)
            assert checkpoints.restore_latest(manager, state(0)).step == 1
        assert not manager.damaged

        class HttpError(Exception):
            """As gcsfs raises it: not an OSError."""

        def fail(self, path, *arguments, **kwargs):
            raise HttpError("503, try again\nlater")

        before = there(root, workdir)
        for method in ("ls", "_open"):
            with monkeypatch.context() as patch:
                patch.setattr(bucket.Bucket, method, fail)
                for read in (lambda: checkpoints.restore_latest(manager, state(0)), lambda: checkpoints.steps(manager)):
                    with pytest.raises(UserError, match="cannot read .*: HttpError: 503, try again; nothing") as error:
                        read()
                    assert "\n" not in str(error.value)
        assert there(root, workdir) == before and not manager.damaged
        assert checkpoints.restore_latest(manager, state(0)).step == 1


def test_a_json_file(root, workdir):
    path = f"{workdir}/a.json"
    with pytest.raises(FileNotFoundError):
        files.read_json(path)
    files.write_json(path, {"seed": 3})
    assert files.read_json(path) == {"seed": 3}
    files.locate(path).write_bytes(files.locate(path).read_bytes().replace(b"3,", b"4,"))
    with pytest.raises(UserError, match=f"{path} is damaged .its checksum is wrong"):
        files.read_json(path)


def test_logs_grow_and_go_on(root, workdir):
    log = logs.open_logs(workdir)
    for step in (10, 20, 30):
        log.write(step, {"loss": 1 / step})
    log.flush()  # as before a checkpoint
    assert [record["step"] for record in logs.read_metrics(workdir)] == [10, 20, 30]
    del log  # the machine is gone
    log = logs.open_logs(workdir, resume_step=20)
    log.write(25, {"loss": float("nan")})
    log.close()
    assert [record["step"] for record in logs.read_metrics(workdir)] == [10, 20, 25]
    first, second = (name for name in there(root, workdir) if name.startswith("tensorboard/events"))
    assert first != second


def test_a_mirror_copies_when_it_is_time(root, workdir):
    now = 0.0
    local, push = files.mirror(workdir, every=10.0, clock=lambda: now)
    (local / "a").write_text("1")
    push()
    assert there(root, workdir) == []
    now = 10.0
    push()
    (local / "a").write_text("12")
    push()
    assert files.locate(f"{workdir}/a").read_text() == "1"
    push(now=True)
    assert files.locate(f"{workdir}/a").read_text() == "12"


def test_a_mirror_of_what_cannot_be_read_now(root, workdir, monkeypatch):
    """It would replace the object by one that begins anew."""
    files.locate(f"{workdir}/a").write_bytes(b"old")

    def fail(self, path, *arguments, **kwargs):
        raise RuntimeError("503, try again")

    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "_open", fail)
        with pytest.raises(UserError, match=f"cannot read {workdir}/a: RuntimeError: 503, try again; nothing was"):
            files.mirror(workdir, ["a", "none"])
    local, push = files.mirror(workdir, ["a", "none"])
    assert [path.name for path in local.iterdir()] == ["a"] and (local / "a").read_bytes() == b"old"
    (local / "b" / "c").mkdir(parents=True)
    (local / "b" / "c" / "d").write_text("1")
    push(now=True)
    assert there(root, workdir) == ["a", "b/c/d"]


def test_the_manifest(root, workdir, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config(): return 7\ndef build(config): pass")
    source = sources.Source(file)

    def claim(seed):
        config = {"seed": seed}
        with manifest.lock(workdir):
            identified = {"config": config, "source": sources.digests(source)}
            admitted = manifest.admit(workdir, identified, config, source, [])
            manifest.write(workdir, admitted, source)
            return admitted

    first = claim(3)
    assert {**claim(3), "resumed": []} == first and len(manifest.read(workdir)["resumed"]) == 1
    with pytest.raises(UserError, match="config.seed is 3 there and 4 here"):
        claim(4)
    with pytest.raises(UserError, match=f"{workdir}/none is not a run"):
        manifest.read(f"{workdir}/none")
    file.unlink()
    assert sources.execute(sources.stored(source, first["identity"]["source"], workdir)).get_config() == 7


def test_an_object_is_replaced_whole_or_not_at_all(root, workdir):
    path = f"{workdir}/a.png"
    with files.replacing(path) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert there(root, workdir) == ["a.png"] and files.locate(path).read_text() == "old"


def test_data_in_a_bucket_are_brought_once(root, workdir, prepare, data_dir, tmp_path, monkeypatch):
    from deeplearn.data import datasets

    folder = prepare(train=40, test=10)
    for file in folder.iterdir():
        files.locate(f"{workdir}/tiny/{folder.name}/{file.name}").write_bytes(file.read_bytes())
    expected = datasets.load("tiny", data_dir=data_dir)
    shutil.rmtree(data_dir)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        found = datasets.load("tiny", data_dir=workdir)
        rows = range(len(expected.train))
        assert np.array_equal(found.train.__getitems__(rows)["image"], expected.train.__getitems__(rows)["image"])
        files.remove_tree(files.locate(workdir))  # the second time nothing is read there
        files.locate(f"{workdir}/tiny/{folder.name}/dataset_info.json").write_text(
            next((tmp_path / "cache").glob("**/dataset_info.json")).read_text()
        )
    with pytest.raises(UserError, match="has no other that is prepared"):
        datasets.load("other", data_dir=workdir)


def test_what_cannot_be_reached_is_one_line(root, monkeypatch):
    def refuse(error):
        def refused(self, path, **more):
            raise error

        return refused

    from fsspec import get_filesystem_class

    kind = get_filesystem_class("gs")
    for error, said in [
        (ImportError("Please install gcsfs"), "gs:// needs gcsfs; install it: pip install -e .[gcs]"),
        (RuntimeError("no credentials\nat all"), "RuntimeError: no credentials; correct the bucket's name"),
    ]:
        monkeypatch.setattr(kind, "exists", refuse(error))
        with pytest.raises(UserError, match="gs://bucket/x") as caught:
            files.reach("gs://bucket/x")
        assert said.replace("\n", " ") in str(caught.value) and "\n" not in str(caught.value)


def test_local_paths_stay_what_they_were(tmp_path):
    assert type(files.locate(str(tmp_path))) is type(tmp_path) and files.reach(tmp_path) == tmp_path
    local, push = files.mirror(tmp_path)
    push(now=True)
    assert local == tmp_path and json.dumps(os.listdir(tmp_path)) == "[]"
