"""Real processes on this machine, against one process."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from deeplearn.data import fingerprint, order
from deeplearn.training.state import ORDER
from tests.deeplearn.parallel.launch import RUN, finished, starter

LOST = "(killed, or its machine is gone); the same command on every process goes on from the last checkpoint\n"


def records(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def saved(workdir):
    return sorted(int(path.name[:9]) for path in (workdir / "checkpoints").glob("[0-9]*-????????"))


def said(err):
    """What a process says itself; XLA and gloo write lines of their own."""
    return [line for line in err.splitlines() if line.startswith("error: ")]


def assert_same_run(a, b):
    """The same losses, but for the order in which devices add up."""
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for one, other in zip(a, b, strict=True):
        names = one.keys() - {"seconds", "crc"}
        np.testing.assert_allclose([one[name] for name in names], [other[name] for name in names], rtol=2e-4)


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    """The records of the run in one process."""
    directory = tmp_path_factory.mktemp("alone")
    with starter(home, directory) as start:
        ((status, _, err),) = finished(start(1, *RUN, "--workdir=run"))
    assert status == 0, err
    return records(directory / "run")


def test_two_processes_lose_as_one(divided, alone):
    """The same loss; process 0 alone writes and prints."""
    workdir, ((status, out, err), (other_status, other_out, other_err)) = divided
    assert (status, other_status) == (0, 0), err + other_err
    assert_same_run(records(workdir), alone)
    assert "test       accuracy" in out and "step 42/42" in err
    assert "accuracy" not in other_out and not other_err
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert json.loads((workdir / "manifest.json").read_text())["devices"]["count"] == 2
    assert {path.name for path in workdir.iterdir()} >= {"curves.png", "wrong.png", "evaluation.json"}


@pytest.mark.slow
@pytest.mark.parametrize("number, devices, mesh", [(4, 1, "data:2,tensor:2"), (2, 2, "data:2,fsdp:2")])
def test_many_processes_lose_as_one(start, alone, tmp_path, number, devices, mesh):
    done = finished(start(number, *RUN, f"--config.mesh={mesh}", "--workdir=run", devices=devices))
    assert [status for status, *_ in done] == [0] * number, done
    assert_same_run(records(tmp_path / "run"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("number, devices, mesh", [(1, 1, ""), (4, 1, "data:2,fsdp:2"), (1, 4, "fsdp:-1")])
def test_restored_on_other_processes_and_devices(start, divided, tmp_path, number, devices, mesh):
    """What two processes wrote together is read by any others, which go on with the same losses."""
    workdir, _ = divided
    shutil.copytree(workdir, tmp_path / "run")
    assert saved(workdir) == [21, 42]
    (later,) = (tmp_path / "run" / "checkpoints").glob("000000042-*")
    shutil.rmtree(later)
    done = finished(start(number, *RUN, f"--config.mesh={mesh}", "--workdir=run", devices=devices))
    assert [status for status, *_ in done] == [0] * number, done
    assert "going on from the checkpoint of step 21 of 42" in done[0][2]
    assert_same_run(records(tmp_path / "run"), records(workdir))
    assert saved(tmp_path / "run") == [21, 42]


def test_a_damaged_checkpoint_is_skipped_by_all(start, divided, tmp_path):
    """Here only what process 1 reads is damaged. `evaluate` prints once."""
    shutil.copytree(divided[0], tmp_path / "run")
    (latest,) = (tmp_path / "run" / "checkpoints").glob("000000042-*")
    files = list((latest / "state" / "ocdbt.process_1" / "d").iterdir())
    assert files
    for file in files:
        file.write_bytes(bytes(file.stat().st_size))
    done = finished(start(2, "evaluate", "--workdir=run", "--checkpoint=last"))
    assert [status for status, *_ in done] == [0, 0], done
    assert "skipped the damaged checkpoint" in done[0][2] and "step 21" in done[0][1]
    assert "accuracy" not in done[1][1] and not done[1][2]


STREAMED = '''"""Digits that are streamed, and a record of every reading."""

import json
import os

import numpy as np

from deeplearn import experiment
from deeplearn.data.splits import Data

DIGITS = experiment.load("digits_mlp")
get_config = DIGITS.get_config


class Recording:
    def __init__(self, source, name):
        self.source, self.name = source, name

    def __len__(self):
        return len(self.source)

    def __getitems__(self, indices):
        with open(f"read{os.environ['RANK_IN_TEST']}.jsonl", "a") as file:
            file.write(json.dumps([self.name, np.asarray(indices).tolist()]) + "\\n")
        return self.source.__getitems__(indices)


def build(config):
    wired = DIGITS.build(config)
    data = wired.data
    splits = {name: Recording(data.split(name), name) for name in ("train", "validation", "test")}
    return wired._replace(data=Data(data.name, **splits, classes=data.classes))
'''


def test_each_reads_only_its_share(start, alone, tmp_path):
    """Of a streamed split, in training and in evaluation; and the losses are those of the run in one process."""
    (tmp_path / "streamed.py").write_text(STREAMED)
    command = ("train", "--config=streamed.py", *RUN[2:], "--workdir=run")
    done = finished(start(2, *command))
    assert [status for status, *_ in done] == [0, 0], done
    assert_same_run(records(tmp_path / "run"), alone)
    key = jax.random.fold_in(jax.random.key(0), ORDER)
    batches = np.asarray(order.chunk_indices(key, 0, 42, 64, 1293))
    for rank in range(2):
        reads = [json.loads(line) for line in (tmp_path / f"read{rank}.jsonl").read_text().splitlines()]
        reads = [(name, tuple(rows)) for name, rows in reads]
        mine = {tuple(rows) for rows in batches[:, 32 * rank : 32 * (rank + 1)].tolist()}
        trained = [rows for name, rows in reads if name == "train" and len(rows) == 32]
        assert mine <= {*trained}
        reads = [(name, rows) for name, rows in reads if len(rows) != fingerprint.SAMPLES]  # all read those, alike
        assert all(len(rows) == 72 for name, rows in reads if name == "validation")
        assert {rows for name, rows in reads if name == "validation"} == {tuple(range(72 * rank, 72 * (rank + 1)))}
        for_pictures = {36, 360} if rank == 0 else set()  # which process 0 alone draws
        assert {len(rows) for _, rows in reads} <= {1, 32, 72, 180, 647} | for_pictures  # 1: the shapes


LONG = ("train", "--config=digits_mlp", "--config.epochs=100000", "--config.log_every=5", "--workdir=run")


def under_way(running, workdir):
    """Wait until they train."""
    while len(records(workdir)) < 3 and all(process.poll() is None for process in running):
        time.sleep(0.05)


def test_sigterm_to_one_stops_all(start, tmp_path):
    """At one step, with a checkpoint, from which they go on."""
    running = start(2, *LONG)
    under_way(running, tmp_path / "run")
    running[1].send_signal(signal.SIGTERM)
    done = finished(running)
    assert [status for status, *_ in done] == [0, 0], done
    step = records(tmp_path / "run")[-1]["step"]
    assert f"stopped at step {step:,}, saved; to go on: python -m deeplearn train" in done[0][2]
    assert saved(tmp_path / "run")[-1] == step and not done[1][2]


@pytest.mark.parametrize("number, victim", [(2, 0), (4, 2)])
def test_a_lost_process_is_named(start, tmp_path, number, victim):
    """After kill -9 nobody waits for it."""
    running = start(number, *LONG)
    under_way(running, tmp_path / "run")
    running[victim].kill()
    killed = time.monotonic()
    done = finished(running)
    assert time.monotonic() - killed < 60
    for rank, (status, _, err) in enumerate(done):
        assert status == (-signal.SIGKILL if rank == victim else 1), err
        who = f"process {rank}: " if rank else ""
        assert rank == victim or err.endswith(f"error: {who}process {victim} is lost {LOST}"), err


FAULTY = '''"""Digits that process 1 cannot have: none at all, or none any more after thirty batches."""

import os

from deeplearn import experiment
from deeplearn.data.splits import Data
from deeplearn.errors import UserError

DIGITS = experiment.load("digits_mlp")
get_config = DIGITS.get_config


class Ending:
    def __init__(self, source):
        self.source, self.reads = source, 0

    def __len__(self):
        return len(self.source)

    def __getitems__(self, indices):
        self.reads += 1
        if self.reads > 30 and os.environ["RANK_IN_TEST"] == "1":
            raise LookupError("no room for the data; make some")
        return self.source.__getitems__(indices)


def build(config):
    if {at_once} and os.environ["RANK_IN_TEST"] == "1":
        raise UserError("no room for the data; make some")
    wired = DIGITS.build(config)
    data = wired.data
    rest = (data.validation, data.test, data.classes)
    return wired if {at_once} else wired._replace(data=Data(data.name, Ending(data.train), *rest))
'''


@pytest.mark.parametrize("at_once, status, passed_on", [(True, 2, ""), (False, 1, "LookupError: ")])
def test_an_error_of_one_ends_all(start, tmp_path, at_once, status, passed_on):
    """Nobody waits for a process that had to stop; a mistake is passed on in its words, a fault has its traceback."""
    (tmp_path / "faulty.py").write_text(FAULTY.format(at_once=at_once))
    zero, one = finished(start(2, "train", "--config=faulty.py", "--workdir=run"))
    line = f"{passed_on}no room for the data; make some"
    assert zero[0] == one[0] == status, (zero, one)
    assert said(zero[2]) == [f"error: process 1 ended: {line}"] and said(one[2]) == [f"error: process 1: {line}"]
    assert "Traceback" not in zero[2] and ("Traceback" in one[2]) == (status == 1)


@pytest.mark.parametrize("absent", [(2, 3), (0,)])
def test_a_process_that_never_arrives(start, tmp_path, absent):
    done = finished(start(4 if absent[0] else 2, *RUN, "--workdir=run", "--process_timeout=2", absent=absent))
    for rank, (status, out, err) in enumerate(done, start=absent == (0,)):
        who = f"process {rank}: " if rank else ""
        what = "processes 2 and 3 of 4 did not arrive" if absent[0] else "process 0 did not arrive at localhost:"
        assert status == 2 and not out
        assert len(err.splitlines()) == 1 and err.startswith(f"error: {who}{what}") and "within 2 s" in err, err
    assert not (tmp_path / "run").exists()


def test_another_config_and_file_on_one_process(start, tmp_path):
    """Are refused before anything is done, on every process."""
    (tmp_path / "one").mkdir()
    for place, more in (("one/streamed.py", ""), ("streamed.py", "# changed\n")):
        (tmp_path / place).write_text(STREAMED + more)
    own = {
        0: ("--config=one/streamed.py",),
        1: ("--config=streamed.py", "--config.learning_rate=0.1", "--config.seed=3"),
    }
    for status, _, err in finished(start(2, "train", "--workdir=run", own=own)):
        assert status == 2 and len(err.splitlines()) == 1
        assert "process 1 was not started as process 0 was: config." in err
        assert "config.learning_rate is None on process 0 and 0.1 on process 1, config.seed is 0 on process 0" in err
        assert ", source.experiment is " in err and err.endswith("; start all with the same command and files\n")
    assert not (tmp_path / "run").exists()


OTHER_DATA = """
import os

from deeplearn import experiment
from deeplearn.data.sources import Arrays

DIGITS = experiment.load("digits_mlp")
get_config = DIGITS.get_config


def build(config):
    wired = DIGITS.build(config)
    arrays = dict(wired.data.train.arrays)
    arrays["image"] = arrays["image"].copy()
    arrays["image"][-1, 0, 0, 0] = int(os.environ["RANK_IN_TEST"])
    return wired._replace(data=wired.data._replace(train=Arrays(arrays)))
"""


def test_other_data_on_one_process(start, tmp_path):
    """One pixel of one example differs: nothing is trained."""
    (tmp_path / "other.py").write_text(OTHER_DATA)
    done = finished(start(2, "train", "--config=other.py", "--workdir=run"))
    assert [status for status, *_ in done] == [2, 2]
    for _, _, err in done:
        (line,) = said(err)
        assert "process 1 was not started as process 0 was: data.train is 1293 examples, " in line
        assert line.endswith("; give all processes the same files, data and machines")
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_workdir_that_is_not_shared(start, tmp_path):
    """Of one name, on two machines' disks: nothing is trained there. The token is in the environment of both."""
    (tmp_path / "other").mkdir()
    done = finished(start(2, *RUN, "--workdir=run", places={1: tmp_path / "other"}, token="of-all-processes"))
    line = "run is another directory on process 1 than on process 0; choose a --workdir that all of them share"
    assert [status for status, *_ in done] == [2, 2]
    assert [said(err) for *_, err in done] == [[f"error: {line}"], [f"error: process 1: {line}"]]
    assert not (tmp_path / "run" / "checkpoints").exists() and not list((tmp_path / "other").iterdir())


def test_compare_is_for_one_process(start):
    arguments = ("compare", "--config=digits_mlp", "--workdir=run", "--coordinator=localhost:1", "--process=0")
    ((status, _, err),) = finished(start(1, *arguments, "--processes=2"))
    assert status == 2 and said(err) == [
        "error: compare runs in one process, which takes all devices of its machine; add --processes=1"
    ]
