"""Failing to write."""

import asyncio
import errno
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import pytest

from deeplearn.errors import UserError
from deeplearn.training import checkpoints, orbax_errors
from tests.deeplearn.training.states import make


def test_a_full_disk(tmp_path, capfd):
    """A limit on file sizes fails a write in the thread, as a full disk does; the words are the system's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"params": jax.random.normal(jax.random.key(0), (1 << 19,))}
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, jax.tree.map(jnp.ones_like, big), {})
        checkpoints.wait(manager)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            assert checkpoints.save(manager, 2, big, {})
            with pytest.raises(UserError) as error:
                checkpoints.wait(manager)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        message = str(error.value)
        assert "checkpoint of step 2" in message and "that of step 1 is kept" in message and "\n" not in message
        assert os.strerror(27) in message  # EFBIG
        assert "Traceback" not in capfd.readouterr().err
        assert [path.name[:9] for path in tmp_path.iterdir()] == ["000000001"]
        assert checkpoints.restore_latest(manager, big).step == 1
        assert checkpoints.save(manager, 2, big, {})
        assert checkpoints.restore_latest(manager, big).step == 2


def test_late_news_of_other_failed_writes_is_let_go(tmp_path, caplog):
    """The event loops that Orbax gets: closed, or never asked for a result, they neither raise nor log."""
    with checkpoints.open(tmp_path):
        loop = asyncio.new_event_loop()
        loop.call_exception_handler({"message": "Future exception was never retrieved"})
        assert not caplog.records
        loop.call_exception_handler({"message": "something else"})
        assert len(caplog.records) == 1
        loop.close()
        loop.call_soon_threadsafe(pytest.fail)


def test_a_directory_that_vanishes_is_made_again(tmp_path):
    with checkpoints.open(tmp_path / "a" / "b") as manager:
        checkpoints.save(manager, 1, make(1), {})
        checkpoints.wait(manager)
        shutil.rmtree(tmp_path / "a")
        checkpoints.save(manager, 2, make(2), {})
        assert checkpoints.restore_latest(manager, make(0)).step == 2


def test_a_directory_that_becomes_a_file(tmp_path):
    directory = tmp_path / "a"
    with checkpoints.open(directory) as manager:
        checkpoints.save(manager, 1, make(1), {})
        checkpoints.wait(manager)
        shutil.rmtree(directory)
        directory.write_text("")
        with pytest.raises(UserError, match="step 2 in .*: File exists; no earlier one was changed"):
            checkpoints.save(manager, 2, make(2), {})
            checkpoints.wait(manager)


def test_a_file_where_the_directory_should_be(tmp_path):
    """A run restores before it trains, and thus notices at its start."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with checkpoints.open(path) as manager:
            with pytest.raises(UserError, match=f"cannot read the checkpoints in {path}: Not a directory; .*--workdir"):
                checkpoints.restore_latest(manager, make(0))


def test_a_programming_error_stays_one(tmp_path):
    with checkpoints.open(tmp_path) as manager, pytest.raises(ValueError, match="same path"):
        checkpoints.save(manager, 1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})


@pytest.mark.parametrize(
    "error, refusal",
    [
        (OSError(errno.EIO, "x"), True),
        (PermissionError(errno.EACCES, "x"), True),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (NotADirectoryError(errno.ENOTDIR, "x"), False),
        (FileNotFoundError("without a number"), False),
        (TimeoutError("without a number"), True),
        (ValueError("NOT_FOUND: Error opening [source locations='os_error_code='24'"), True),
        (ValueError("NOT_FOUND: Error opening"), False),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), False),
        (ValueError("UNAVAILABLE: the server does not answer"), True),
        (ValueError("its value UNAVAILABLE: x"), False),
        (KeyError("state"), False),
    ],
)
def test_a_refusal_is_no_damage(error, refusal):
    assert orbax_errors.is_refusal(error) is refusal
    assert orbax_errors.is_io(error) or not refusal  # in writing it is told in one line
    try:
        raise RuntimeError("a wrapper") from error
    except RuntimeError as wrapper:
        assert orbax_errors.is_refusal(wrapper) is refusal


def test_errors_of_the_clients_of_buckets_are_refusals():
    HttpError = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})
    assert orbax_errors.is_refusal(HttpError("503")) and orbax_errors.is_io(HttpError("503"))
