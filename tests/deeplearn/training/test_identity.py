"""A checkpoint belongs to one run: its identity is in its record, and its name is that of its content."""

import json
import shutil

import pytest

from deeplearn.errors import UserError
from deeplearn.training import checkpoints, listing, stored
from tests.deeplearn.training.faults import digest
from tests.deeplearn.training.states import assert_same, make, of_step


def saved(directory, identity, steps, metric=None, keep=5):
    with checkpoints.open(directory, keep=keep, identity=identity) as manager:
        for step in steps:
            assert checkpoints.save(manager, step, make(step), {}, metric)


@pytest.mark.parametrize(
    "theirs, ours, accepted, words",
    [
        ("a", "a", (), None),
        ("a", "b", ("a", "c"), None),
        (None, "b", (None,), None),
        (None, None, (), None),
        ("a", None, (), None),
        ("a", "b", (), "its identity is a, this run's is b"),
        ("a", "b", (None, "c"), "its identity is a, this run's is b"),
        (None, "b", (), "it has no identity, this run's is b"),
        (None, "b", ("a",), "it has no identity, this run's is b"),
    ],
)
@pytest.mark.parametrize("restore", [checkpoints.restore_latest, checkpoints.restore_best])
def test_which_checkpoints_are_accepted(tmp_path, theirs, ours, accepted, words, restore):
    saved(tmp_path, theirs, [1], metric=0.5)
    path, before = of_step(tmp_path, 1), digest(tmp_path)
    with checkpoints.open(tmp_path, identity=ours, accepted=accepted) as manager:
        if words is None:
            assert_same(restore(manager, make(0)).state, make(1))
        else:
            with pytest.raises(UserError) as error:
                restore(manager, make(0))
            remedy = "move it away, or choose another --workdir"
            assert str(error.value) == f"the checkpoint {path} is of another run: {words}; {remedy}"
        assert checkpoints.steps(manager) == ([1] if words is None else [])
    assert digest(tmp_path) == before


def test_a_record_from_before_there_were_identities(tmp_path, monkeypatch):
    make_record = stored.make_record

    def old(*arguments):
        record = make_record(*arguments)
        del record["identity"]
        return record

    monkeypatch.setattr(stored, "make_record", old)
    saved(tmp_path, None, [1])
    monkeypatch.undo()
    for identity, accepted in ((None, ()), ("a", (None,))):
        with checkpoints.open(tmp_path, identity=identity, accepted=accepted) as manager:
            assert checkpoints.restore_latest(manager, make(0)).step == 1
    with checkpoints.open(tmp_path, identity="a") as manager, pytest.raises(UserError, match="it has no identity"):
        checkpoints.restore_latest(manager, make(0))


def test_those_of_another_run_are_not_deleted_and_not_counted(tmp_path):
    saved(tmp_path, "theirs", [1, 2, 9], metric=0.1)
    saved(tmp_path, None, [3])
    saved(tmp_path, "ours", [4, 5, 6], metric=0.5, keep=1)
    checkpoints_there = [(c.step, c.identity) for c in listing.listed(tmp_path)]
    expected = [(1, "theirs"), (2, "theirs"), (3, None), (4, "ours"), (6, "ours"), (9, "theirs")]
    assert checkpoints_there == expected  # of ours the newest, and the earliest of the best


def test_the_same_state_of_two_runs(tmp_path):
    """It is saved for each of them."""
    saved(tmp_path, "a", [1])
    saved(tmp_path, "b", [1])
    assert [c.identity for c in listing.listed(tmp_path)] == ["a", "b"]


def test_a_changed_identity_is_damage(tmp_path):
    saved(tmp_path, "a", [1, 2])
    file = of_step(tmp_path, 2) / "record" / "record.json"
    file.write_text(file.read_text().replace('"identity": "a"', '"identity": "b"'))
    for identity in ("a", None):
        with checkpoints.open(tmp_path, identity=identity) as manager:
            assert checkpoints.restore_latest(manager, make(0)).step == 1 and len(manager.damaged) == 1


def move_record(directory):
    shutil.copy(of_step(directory, 1) / "record" / "record.json", of_step(directory, 2) / "record" / "record.json")


def move_arrays(directory):
    shutil.rmtree(of_step(directory, 2) / "state")
    shutil.copytree(of_step(directory, 1) / "state", of_step(directory, 2) / "state")


def rename(directory):
    path = of_step(directory, 2)
    shutil.copytree(path, path.with_name(path.name.replace("000000002", "000000007")))
    shutil.rmtree(path)


def change_the_metric(directory):
    """The record is consistent in itself, but its name is that of another metric."""
    file = of_step(directory, 2) / "record" / "record.json"
    record = json.loads(file.read_text())["record"]
    file.write_text(json.dumps(stored.sealed(record | {"metric": 0.0})))


@pytest.mark.parametrize("change", [move_record, move_arrays, rename, change_the_metric])
@pytest.mark.parametrize("restore", [checkpoints.restore_latest, checkpoints.restore_best])
def test_step_name_and_metric_agree(tmp_path, change, restore):
    with checkpoints.open(tmp_path) as manager:
        for step, metric in ((1, 0.5), (2, 0.4)):
            checkpoints.save(manager, step, make(step), {}, metric)
    change(tmp_path)
    with checkpoints.open(tmp_path) as manager:
        restored = restore(manager, make(0))
        assert restored.step == 1 and len(manager.damaged) == 1
        assert_same(restored.state, make(1))
