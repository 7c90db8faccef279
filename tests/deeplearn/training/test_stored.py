"""Whatever is done to a file of the newest checkpoint, either the state comes back bit for bit, or the checkpoint is
skipped with one line.
"""

import errno
import functools
import io
import logging
import os
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.training import checkpoints, stored
from tests.deeplearn.training.states import assert_same, make, of_step


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "first byte": functools.partial(flip, position=0),
    "middle byte": functools.partial(flip, position=0.5),
    "last byte": functools.partial(flip, position=1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
    "rubbish": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
}  # fmt: skip


def restore_after(damage, pair, directory, caplog):
    """The step that comes back after `damage(path of the newest)`, and how many warnings."""
    shutil.copytree(pair, directory)
    damage(of_step(directory, 2))
    caplog.clear()
    with checkpoints.open(directory) as manager:
        restored = checkpoints.restore_latest(manager, make(0))
    assert_same(restored.state, make(restored.step))
    assert restored.metadata == {"epoch": restored.step / 2}
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == 2 - restored.step and all("\n" not in message for message in messages)
    return restored.step


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_skipped_or_harmless(pair, tmp_path, caplog, damage):
    logging.getLogger("absl").propagate = True
    newest = of_step(pair, 2)
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    skipped = set()
    for number, file in enumerate(files):
        restored = restore_after(lambda path, f=file: DAMAGE[damage](path / f), pair, tmp_path / str(number), caplog)
        if restored == 1:
            skipped.add(file.parts[0])
    assert {"state", "record"} <= skipped


def test_every_byte_of_an_array_counts(tmp_path, caplog):
    """More than a kilobyte lies in its file as it is, where only the fingerprint guards it."""
    logging.getLogger("absl").propagate = True
    state = make(1, width=200)
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, state, {})
    kernel = np.asarray(state.params["Dense_0"]["kernel"]).tobytes()
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file() and kernel in path.read_bytes())
    content = file.read_bytes()
    for offset in range(0, len(kernel), 331):
        damaged = bytearray(content)
        damaged[content.index(kernel) + offset] ^= 1 << offset % 8
        file.write_bytes(damaged)
        caplog.clear()
        with checkpoints.open(tmp_path) as manager:
            assert checkpoints.restore_latest(manager, state) is None
        assert "params/Dense_0/kernel is not what was written" in caplog.text


def test_a_file_is_read_to_its_end():
    """A disk may fail beyond the first block: that is no damage."""

    class Failing(io.BytesIO):
        def read(self, size):
            if self.tell():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    path = SimpleNamespace(is_dir=lambda: False, open=lambda mode: Failing(bytes(stored._BLOCK + 1)))
    with pytest.raises(OSError, match="Input/output error"):
        stored.read_through(path)


@pytest.mark.parametrize(
    "leftover",
    [
        lambda path: shutil.copytree(path, path.with_name("000000003-01234567.orbax-checkpoint-tmp")),
        lambda path: shutil.copytree(path, path.with_name("000000003-01234567.deleted")),
        lambda path: path.with_name("notes").mkdir(),
        lambda path: path.with_name("3").write_text(""),
    ],
)
def test_what_is_no_checkpoint_is_no_trouble(pair, tmp_path, caplog, leftover):
    directory = tmp_path / "checkpoints"
    assert restore_after(leftover, pair, directory, caplog) == 2
    with checkpoints.open(directory) as manager:
        checkpoints.save(manager, 4, make(4), {})
        assert checkpoints.restore_latest(manager, make(0)).step == 4
    assert not [path for path in directory.iterdir() if path.suffix]


@pytest.mark.parametrize("kind", ["empty directory", "file"])
def test_what_only_looks_like_a_checkpoint_is_skipped(pair, tmp_path, caplog, kind):
    logging.getLogger("absl").propagate = True
    shutil.copytree(pair, tmp_path / "c")
    path = tmp_path / "c" / "000000009-01234567"
    path.mkdir() if kind == "empty directory" else path.write_text("")
    with checkpoints.open(tmp_path / "c") as manager:
        assert checkpoints.restore_latest(manager, make(0)).step == 2
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


def test_all_damaged(pair, tmp_path, caplog):
    """That the run starts again is said, and a damaged one stays until its step has been passed."""
    logging.getLogger("absl").propagate = True
    shutil.copytree(pair, tmp_path / "c")
    for path in (tmp_path / "c").iterdir():
        shutil.rmtree(path / "state")
    with checkpoints.open(tmp_path / "c") as manager:
        assert checkpoints.restore_latest(manager, make(0)) is None
        *skipped, last = [record.getMessage() for record in caplog.records]
        assert len(skipped) == 2 and "is intact; a run there starts again at step 0" in last and "\n" not in last
        for step, there in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2])):
            checkpoints.save(manager, step, make(step + 10), {})
            checkpoints.wait(manager)
            names = sorted(path.name for path in (tmp_path / "c").iterdir())
            assert [int(name[:9]) for name in names] == there
        assert not manager.damaged & set(names)


@pytest.mark.parametrize(
    "damage",
    [lambda path: flip(path / "record" / "record.json", 0.5), lambda path: shutil.rmtree(path / "state" / "d")],
    ids=["record", "arrays"],
)
def test_a_run_passes_a_damaged_step_again(pair, tmp_path, damage):
    directory = tmp_path / "c"
    shutil.copytree(pair, directory)
    damage(of_step(directory, 2))
    with checkpoints.open(directory) as manager:
        assert checkpoints.restore_latest(manager, make(0)).step == 1
        checkpoints.save(manager, 1, make(1), {})
        assert of_step(directory, 2).exists()  # it may yet be of use to someone
        checkpoints.save(manager, 2, make(2), {"epoch": 1})
        restored = checkpoints.restore_latest(manager, make(0))
        assert (restored.step, restored.metadata) == (2, {"epoch": 1})
        assert checkpoints.steps(manager) == [1, 2]


def test_the_best_damaged_gives_the_next_best(tmp_path):
    with checkpoints.open(tmp_path, keep=3) as manager:
        for step, metric in ((1, 0.3), (2, 0.1), (3, 0.2)):
            checkpoints.save(manager, step, make(step), {}, metric)
        checkpoints.wait(manager)
        shutil.rmtree(of_step(tmp_path, 2) / "state" / "d")
        assert checkpoints.restore_best(manager, make(0)).step == 3


@pytest.mark.parametrize(
    "other, words",
    [
        (make(0, width=5), "params/Dense_0/bias is float32[4] there and float32[5] here"),
        (make(0)._replace(opt_state=()), "opt_state/0/count is int32[] there and absent here"),
        (make(0)._replace(step=jnp.float32(0)), "step is int32[] there and float32[] here"),
        (make(0)._replace(rng=jax.random.key(0, impl="rbg")), "rng is key<fry>[] there and key<rbg>[] here"),
    ],
)
def test_another_model(pair, other, words):
    before = sorted(pair.rglob("*"))
    with checkpoints.open(pair) as manager, pytest.raises(UserError, match="another model") as error:
        checkpoints.restore_latest(manager, other)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert sorted(pair.rglob("*")) == before
