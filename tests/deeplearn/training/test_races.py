"""Readers work at any time, also while a run saves new checkpoints and deletes old ones."""

import errno
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.training import checkpoints, listing
from tests.deeplearn.parallel.launch import WAIT, free_port
from tests.deeplearn.training.faults import digest, injected
from tests.deeplearn.training.states import assert_same, make, of_step


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A directory with checkpoints of steps 1, 2 and 3, of which the first has the best metric."""
    directory = tmp_path_factory.mktemp("three")
    with checkpoints.open(directory, keep=3) as manager:
        for step in (1, 2, 3):
            checkpoints.save(manager, step, make(step), {}, float(step))
    return directory


def delete(path):
    """As the writer deletes."""
    shutil.rmtree(path.rename(f"{path}.deleted"))


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_deleted_at_any_moment(three, tmp_path, monkeypatch, caplog, saved, best):
    """Before a call of a reader its checkpoint is deleted; if `saved`, all others too, once a newer one is there."""
    logging.getLogger("absl").propagate = True
    restore = checkpoints.restore_best if best else checkpoints.restore_latest
    directory, steps, number, moments = tmp_path / "c", set(), saved, 2
    while number < moments:
        shutil.copytree(three, directory)
        newer = of_step(directory, 3).rename(directory / "newer") if saved else None
        first = 1 if best else 2 if saved else 3

        def change(call, path, moment=number, newer=newer, first=first):
            if call == moment:
                if newer:
                    newer.rename(directory / of_step(three, 3).name)
                for step in (1, 2) if newer else (first,):
                    delete(of_step(directory, step))

        with checkpoints.open(directory) as manager:
            with injected(monkeypatch, directory, before=change) as calls:
                restored = restore(manager, make(0))
        assert_same(restored.state, make(restored.step))
        assert restored.step == first or restored.step == (3 if saved else 2)
        assert not manager.damaged and not caplog.records
        steps.add(restored.step)
        moments, number = max(moments, min(len(calls), 30)), number + 2
        shutil.rmtree(directory)
    assert moments > 10 and (3 if saved else 2) in steps


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EIO])
def test_a_read_that_fails_because_its_file_was_deleted(three, tmp_path, monkeypatch, code):
    """A network disk reports a stale handle."""
    shutil.copytree(three, tmp_path / "c")
    read_bytes = pathlib.Path.read_bytes

    def fail(path):
        newest = path.parent.parent
        if newest.name.startswith("000000003"):
            delete(newest)
            raise OSError(code, os.strerror(code), str(path))
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", fail)
    with checkpoints.open(tmp_path / "c") as manager:
        assert checkpoints.restore_latest(manager, make(0)).step == 2 and not manager.damaged


def test_files_of_a_deleted_checkpoint_that_stay(tmp_path, monkeypatch):
    """A network disk keeps the files that readers have open; the run goes on, and deletes them later."""
    with checkpoints.open(tmp_path, keep=1) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "remove_tree", lambda path, ignore_errors: None)
            for step in (1, 2, 1, 2, 3):
                checkpoints.save(manager, step, make(step), {})
            checkpoints.wait(manager)
        assert len([path for path in tmp_path.iterdir() if ".deleted" in path.name]) > 1
        assert checkpoints.steps(manager) == [3]
        checkpoints.save(manager, 4, make(4), {})
        checkpoints.wait(manager)
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["000000004"]


def test_what_vanishes_again_and_again_is_one_line(three, monkeypatch):
    with checkpoints.open(three) as manager:
        monkeypatch.setattr(listing, "TRIES", 3)
        names = iter(f"{step:09d}-01234567" for step in range(10, 100))
        monkeypatch.setattr(listing, "paths", lambda directory: [directory / next(names)])
        with pytest.raises(UserError, match="are deleted faster than they can be read; evaluate a copy") as error:
            checkpoints.restore_latest(manager, make(0))
    assert "\n" not in str(error.value)


WRITER = """
    import sys, jax.numpy as jnp
    from deeplearn.training import checkpoints
    with checkpoints.open(sys.argv[1], keep=2) as manager:
        for step in range(1, 21):
            state = {"params": jnp.full(1000, step), "step": step}
            checkpoints.save(manager, step, state, {"s": step}, metric=-float(step % 7))
"""
READER = """
    import pathlib, sys, jax.numpy as jnp
    from deeplearn.training import checkpoints
    last = 0
    while last < 20:
        with checkpoints.open(sys.argv[1], mode="min") as manager:
            for restore in (checkpoints.restore_latest, checkpoints.restore_best):
                restored = restore(manager, {"params": jnp.zeros(1000, jnp.int32), "step": 0})
                if restored is None:
                    assert not last, "there were checkpoints"
                    continue
                assert restored.metadata == {"s": restored.step} and int(restored.state["step"]) == restored.step
                assert (restored.state["params"] == restored.step).all()
                if restore is checkpoints.restore_latest:
                    assert restored.step >= last, (restored.step, last)
                    last = restored.step
            assert not manager.damaged, manager.damaged
"""


def started(program, *arguments):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": flags}
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(processes):
    """(status, standard output, standard error) of each."""
    try:
        texts = [process.communicate(timeout=WAIT) for process in processes]
        return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def test_a_writer_and_readers(tmp_path):
    processes = [started(WRITER, tmp_path / "c"), *(started(READER, tmp_path / "c") for _ in range(2))]
    for status, _, err in outputs(processes):
        assert status == 0, err
        assert "Traceback" not in err and "damaged" not in err


TOGETHER = """
    import sys, jax, numpy as np
    from deeplearn.parallel import processes
    from deeplearn.training import checkpoints, stored
    port, rank, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    if rank == 0:  # the last deletion takes its time, and the other process is far ahead
        import time
        set_aside = stored.set_aside
        stored.set_aside = lambda path: time.sleep(0.2) or set_aside(path)

    with processes.together(processes.Place(f"localhost:{port}", 2, rank), {}, 60.0):
        sharding = jax.sharding.NamedSharding(jax.make_mesh((2,), "data"), jax.sharding.PartitionSpec("data"))

        def make(step):
            values = np.full(8, step, np.float32)
            return {"params": jax.make_array_from_callback((8,), sharding, lambda index: values[index])}

        with checkpoints.open(directory, keep=1, mode="max") as manager:
            for step in range(1, 5):
                checkpoints.save(manager, step, make(step), {}, metric=float(step))
                checkpoints.wait(manager)
                best = checkpoints.restore_best(manager, make(0))
                print(best.step, sorted(manager.damaged), flush=True)
"""


def test_two_processes_at_the_end_of_a_run(tmp_path):
    """Both read the same checkpoint right after process 0 has deleted others."""
    port = free_port()
    done = outputs([started(TOGETHER, port, rank, tmp_path / "c") for rank in (0, 1)])
    for status, out, err in done:
        assert status == 0, err
        lines = [line for line in out.splitlines() if "Gloo" not in line]  # which writes to standard output
        assert lines == [f"{step} []" for step in range(1, 5)]


REFUSED = """
    import errno, os, sys, pathlib, jax.numpy as jnp
    from deeplearn.parallel import processes
    from deeplearn.training import checkpoints
    port, rank, directory, bad_rank, bad_path = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]

    def refuse(function):
        def call(path, *arguments):
            if str(rank) == bad_rank and str(path).endswith(bad_path):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return function(path, *arguments)
        return call

    pathlib.Path.read_bytes, os.listdir = refuse(pathlib.Path.read_bytes), refuse(os.listdir)
    with processes.together(processes.Place(f"localhost:{port}", 2, rank), {}, 60.0):
        with checkpoints.open(directory) as manager:
            checkpoints.restore_latest(manager, {"params": jnp.zeros(4)})
"""


@pytest.mark.parametrize("bad_rank, bad_path", [(0, "/c"), (1, "record.json")])
def test_one_of_two_processes_cannot_read(tmp_path, bad_rank, bad_path):
    """Both end with the same line."""
    directory, port = tmp_path / "c", free_port()
    with checkpoints.open(directory) as manager:
        checkpoints.save(manager, 1, {"params": jnp.zeros(4)}, {})
    before = digest(directory)
    for status, _, err in outputs([started(REFUSED, port, rank, directory, bad_rank, bad_path) for rank in (0, 1)]):
        assert status == 2 and "Traceback" not in err, err
        assert "cannot read the checkpoint" in err and "Input/output error; nothing was changed" in err
    assert digest(directory) == before


def test_a_step_that_is_saved_again_after_damage_to_its_record(tmp_path):
    """Nobody has restored it, so that nobody has noticed the damage."""
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 1, make(1), {"a": 1})
        checkpoints.wait(manager)
        (of_step(tmp_path, 1) / "record" / "record.json").write_text("{}")
        assert checkpoints.steps(manager) == []
        checkpoints.save(manager, 1, make(1), {"a": 1})
        restored = checkpoints.restore_latest(manager, make(0))
    assert restored.metadata == {"a": 1} and not manager.damaged
    np.testing.assert_array_equal(restored.state.params["Dense_0"]["bias"], jnp.ones(4))
