"""Which checkpoint stands for the best when the best is damaged, and what is said of it."""

import shutil

import pytest

from deeplearn.training import checkpoints, restoring
from tests.deeplearn.training.states import make, of_step


def record(path):
    (path / "record" / "record.json").write_text("{}")


def arrays(path):
    shutil.rmtree(path / "state" / "d")


KIND = {"best": "best checkpoint", "next": "best intact checkpoint", "intact": "last intact checkpoint"}


@pytest.mark.parametrize("damage", [record, arrays])
@pytest.mark.parametrize(
    "metrics, spoilt, step, kind, words",
    [
        ((0.5, 0.9, 0.7), (), 2, KIND["best"], ""),
        ((0.5, 0.9, None), (2,), 1, KIND["next"], "step 2"),
        ((0.5, 0.9, 0.7), (2,), 3, KIND["next"], "step 2"),
        ((0.5, 0.9, 0.7), (2, 3), 1, KIND["next"], "2, 3"),
        ((None, 0.9, None), (2,), 3, KIND["intact"], "the best, of step 2, is damaged or gone"),
        ((None, 0.9, None), (2, 3), 1, KIND["intact"], "a damaged one may be better: step 2, 3"),
        ((None, None, None), (), 3, "last checkpoint", "no evaluation has given a finite value"),
    ],
)
def test_the_next_best(tmp_path, metrics, spoilt, step, kind, words, damage):
    best = 0
    with checkpoints.open(tmp_path, keep=3, mode="max") as manager:
        for at, metric in enumerate(metrics, 1):
            if metric is not None and metric >= max(x for x in metrics if x is not None):
                best = at
            checkpoints.save(manager, at, make(at), {"best_step": best}, metric)
    for at in spoilt:
        damage(of_step(tmp_path, at))
    with checkpoints.open(tmp_path, keep=3, mode="max") as manager:
        for _ in range(2):  # again by the same manager, which knows the damage by then
            found = checkpoints.restore_best(manager, make(0)) or checkpoints.restore_latest(manager, make(0))
            assert found.step == step
            assert restoring.described(found)[0] == kind and words in restoring.described(found)[1]
        known = restoring.described(found, best)  # as at the end of a run, which knows the step of its best
        assert known[0] == kind and (f"the best, of step {best}, is damaged or gone" == known[1] or not spoilt)


def test_damage_that_does_not_matter(tmp_path):
    """A checkpoint that is known to be worse, or older than the last, is no reason to say anything."""
    with checkpoints.open(tmp_path, keep=3, mode="max") as manager:
        for at, metric in enumerate((0.5, 0.9, 0.7), 1):
            checkpoints.save(manager, at, make(at), {}, metric)
    arrays(of_step(tmp_path, 1))
    with checkpoints.open(tmp_path, keep=3, mode="max") as manager:
        assert restoring.described(checkpoints.restore_best(manager, make(0))) == ("best checkpoint", "")
    record(of_step(tmp_path, 1))
    with checkpoints.open(tmp_path, keep=3, mode="max") as manager:
        assert checkpoints.restore_latest(manager, make(0)).damaged == ()


def test_damage_to_one_of_two_checkpoints_of_a_step(tmp_path):
    """The state is there, in the other."""
    with checkpoints.open(tmp_path) as manager:
        checkpoints.save(manager, 3, make(3), {})
        checkpoints.wait(manager)
        (stopped,) = tmp_path.iterdir()
        kept = shutil.copytree(stopped, tmp_path.with_name("kept") / stopped.name)
        checkpoints.save(manager, 3, make(3), {}, 0.5)
    (evaluated,) = tmp_path.iterdir()
    shutil.copytree(kept, stopped)
    for damage in (arrays, record):
        damage(evaluated)
        with checkpoints.open(tmp_path) as manager:
            restored = checkpoints.restore_latest(manager, make(0))
            assert (restored.step, restored.metric, restored.damaged) == (3, None, ())
