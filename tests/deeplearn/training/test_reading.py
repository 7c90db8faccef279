"""A checkpoint that cannot be read at present is no damaged one: one line, nothing is changed, and later it is read."""

import contextlib
import errno
import itertools
import logging
import os
import resource
import shutil

import jax
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.training import checkpoints, listing, reading, stored
from tests.deeplearn.training.faults import digest, injected
from tests.deeplearn.training.states import assert_same, make, of_step

CODES = [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES, errno.ENETDOWN, errno.ETIMEDOUT]


@pytest.fixture
def directory(pair, tmp_path):
    shutil.copytree(pair, tmp_path / "c")
    return tmp_path / "c"


def refused_or_newest(manager, faults=None):
    """The line of the refusal; None if the newest checkpoint was restored. Either way nothing has changed."""
    before = digest(manager.directory)
    line = None
    try:
        with faults or contextlib.nullcontext():
            restored = checkpoints.restore_latest(manager, make(0))
    except UserError as error:
        line = str(error)
        assert "cannot read the checkpoint" in line and "nothing was changed" in line and "\n" not in line
    else:
        assert restored.step == 2
        assert_same(restored.state, make(2))
    assert digest(manager.directory) == before and not manager.damaged
    return line


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_every_call_that_fails(directory, monkeypatch, code, lasting):
    with checkpoints.open(directory) as manager:
        with injected(monkeypatch, directory) as calls:
            checkpoints.restore_latest(manager, make(0))
        number = len(calls)
        assert number > 10
        first, every = (CODES.index(code) % 2, 2) if lasting else (0, 1)  # half of them, to save time
        refusals = 0
        for chosen in range(first, number, every):
            faults = injected(monkeypatch, directory, lambda n, path, k=chosen: n >= k if lasting else n == k, code)
            line = refused_or_newest(manager, faults)
            assert line is None or os.strerror(code) in line
            refusals += line is not None
        assert refusals > number // 4
        assert refused_or_newest(manager) is None


def test_too_many_open_files(directory):
    """TensorStore opens files outside of Python."""

    @contextlib.contextmanager
    def few_files(free):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        numbers = (
            number for number in range(soft) if number not in used or not os.path.exists(f"/proc/self/fd/{number}")
        )
        resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(numbers, free, None)), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    lines = []
    with checkpoints.open(directory) as manager:
        refused_or_newest(manager)
        for free in range(3):
            lines.append(refused_or_newest(manager, few_files(free)))
        assert refused_or_newest(manager) is None
    assert any(lines) and all(os.strerror(errno.EMFILE) in line for line in lines if line)


def test_links_to_what_is_not_there(directory):
    """A disk that is not mounted, or a loop, in place of any file or directory."""
    newest = of_step(directory, 2)
    paths = [newest, *sorted(newest.rglob("*"))]
    lines = set()
    with checkpoints.open(directory) as manager:
        for path in paths:
            for target in ("/not/mounted", path):
                path.rename(directory / "away")
                path.symlink_to(target)
                lines.add(refused_or_newest(manager))
                path.unlink()
                (directory / "away").rename(path)
        assert refused_or_newest(manager) is None
        directory.rename(f"{directory}-away")
        directory.symlink_to("/not/mounted")
        with pytest.raises(UserError, match="cannot read the checkpoints in"):
            checkpoints.restore_latest(manager, make(0))
    assert len(lines) > 2


@pytest.mark.parametrize("function", [checkpoints.steps, checkpoints.restore_best])
@pytest.mark.parametrize("name", ["listdir", "record.json"])
def test_every_reader_of_a_directory(directory, monkeypatch, function, name):
    arguments = () if function is checkpoints.steps else (make(0),)
    with checkpoints.open(directory) as manager:
        chosen = {"listdir": lambda n, path: path == str(directory), "record.json": lambda n, path: name in path}[name]
        with injected(monkeypatch, directory, chosen, errno.EIO):
            with pytest.raises(UserError, match="cannot read the checkpoint.*Input/output error; nothing was changed"):
                function(manager, *arguments)
    assert len(listing.listed(directory)) == 2


@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), "MemoryError"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nof the device"), "RESOURCE_EXHAUSTED: out of"),
        (ValueError("UNAVAILABLE: the server does not answer"), "UNAVAILABLE: the server"),
        (ConnectionResetError("reset by the server"), "reset by the server"),
    ],
)
@pytest.mark.parametrize("place", [(reading, "_arrays"), (stored, "altered")])
def test_trouble_of_the_reader(directory, monkeypatch, error, words, place):
    if place[1] == "altered" and not isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
        pytest.skip("fingerprints read no files")

    def fail(*arguments):
        raise error

    with checkpoints.open(directory) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            assert words in refused_or_newest(manager)
        assert refused_or_newest(manager) is None


def test_a_fault_that_is_over_at_the_second_attempt(directory, monkeypatch):
    """Orbax takes what it cannot look at for absent."""
    newest = of_step(directory, 2)
    hidden = iter([True])
    arrays = reading._arrays

    def once(handler, path, item):
        if path == newest and next(hidden, False):
            raise KeyError('Item "state" was not found')
        return arrays(handler, path, item)

    monkeypatch.setattr(reading, "_arrays", once)
    with checkpoints.open(directory) as manager:
        assert refused_or_newest(manager) is None


def test_a_fault_of_the_caller_is_no_damage(directory):
    with checkpoints.open(directory) as manager, pytest.raises(ValueError, match="same path"):
        checkpoints.restore_latest(manager, {"a/b": np.ones(1), "a": {"b": np.ones(1)}})


@pytest.mark.parametrize("what", ["directory", "record of the best", "record of the newest"])
def test_nothing_is_deleted_while_something_cannot_be_read(tmp_path, monkeypatch, what):
    with checkpoints.open(tmp_path, keep=1) as manager:
        for step, metric in ((1, 0.1), (2, 0.2)):
            checkpoints.save(manager, step, make(step), {}, metric)
        checkpoints.save(manager, 3, make(3), {}, 0.3)
        manager.checkpointer.wait_until_finished()
        there = {1: "record of the best", 3: "record of the newest"}
        (bad,) = [of_step(tmp_path, step) / "record" for step, name in there.items() if name == what] or [tmp_path]
        before = digest(tmp_path)
        with injected(monkeypatch, tmp_path, lambda n, path: path.startswith(str(bad)), errno.ESTALE):
            with pytest.raises(UserError, match="cannot read the checkpoint.*Stale file handle"):
                checkpoints.wait(manager)
        assert digest(tmp_path) == before
        checkpoints.save(manager, 4, make(4), {}, 0.4)
        checkpoints.wait(manager)
        assert checkpoints.steps(manager) == [1, 4]


def test_a_refusal_to_delete_is_one_line(tmp_path, monkeypatch):
    with checkpoints.open(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 1, make(1), {})
        checkpoints.save(manager, 2, make(2), {})

        def refuse(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(stored, "set_aside", refuse)
            line = "cannot delete old checkpoints in .*: Permission denied; the newest is saved"
            with pytest.raises(UserError, match=line):
                checkpoints.wait(manager)
        assert checkpoints.restore_latest(manager, make(0)).step == 2


def test_a_reader_changes_nothing(directory, monkeypatch, caplog):
    """A directory on a disk that cannot be written, or none at all."""
    logging.getLogger("absl").propagate = True
    changes = []
    for name in ("mkdir", "rename", "unlink", "remove", "rmdir", "replace", "symlink"):
        monkeypatch.setattr(os, name, lambda *arguments, n=name, **kwargs: changes.append((n, *arguments)))
    before = digest(directory)
    for place, step in ((directory, 2), (directory / "none" / "at all", None)):
        with checkpoints.open(place) as manager:
            restored = checkpoints.restore_latest(manager, make(0))
            assert (restored and restored.step) == step
            assert checkpoints.restore_best(manager, make(0)) is None
    assert not [change for change in changes if str(directory) in str(change)]
    assert digest(directory) == before and not caplog.records


FLIPS = 46  # twice each file


def test_random_flips(directory, caplog):
    """The state comes back bit for bit, or the checkpoint is skipped as damaged, or one line says why not."""
    rng = np.random.default_rng(0)
    newest = of_step(directory, 2)
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    results = set()
    for number in range(FLIPS):
        path = files[number % len(files)]
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with checkpoints.open(directory) as manager:
            try:
                restored = checkpoints.restore_latest(manager, make(0))
            except UserError as error:
                assert "\n" not in str(error)
                results.add("refused")
            else:
                assert_same(restored.state, make(restored.step))
                assert restored.metadata == {"epoch": restored.step / 2}
                assert (restored.step == 2) != bool(manager.damaged)
                results.add(restored.step)
        path.write_bytes(content)
    assert results >= {1, 2}
