import numpy as np
import pytest

from deeplearn.comparison import protocol, sweep
from deeplearn.config import base_config
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import Target, wire
from deeplearn.models.mlp import MLP
from deeplearn.tasks.classification import classification


def build(**fields):
    def split(number, seed):
        random = np.random.RandomState(seed)
        labels = random.randint(0, 3, number).astype(np.int32)
        images = (random.standard_normal((number, 2, 2, 1)) + labels[:, None, None, None]).astype(np.float32)
        return Arrays({"image": images, "label": labels})

    data = Data("blobs", split(96, 0), split(30, 1), split(30, 2), ("a", "b", "c"))
    config = base_config(**{"batch_size": 16, "epochs": 2.0, "target": "accuracy>=0.5", **fields})
    return wire(config, classification(MLP((8,), 3), (2, 2, 1), 3), data)


POINTS = [{"learning_rate": rate} for rate in (1e-5, 0.03, 1e30)]


@pytest.fixture
def trained(monkeypatch):
    """What each call of `train` trains: the runs of its slices, and whether on the test split."""
    calls = []

    def spy(prepared, slices, *, test, **kwargs):
        lanes = prepared.plan.lanes
        runs = [(prepared.points[i], int(seed)) for i, seed in zip(prepared.point, prepared.seeds, strict=True)]
        calls.append(([run for at in slices for run in runs[at * lanes : (at + 1) * lanes]], test))
        return sweep.train(prepared, slices, test=test, **kwargs)

    monkeypatch.setattr(protocol, "train", spy)
    return calls


def run(directory, points=POINTS, seeds=(0, 1), reruns=3):
    return protocol.run(directory, "minibatch_sgd", build(optimizer="minibatch_sgd"), points, seeds, reruns)


def test_the_winner_runs_again_with_fresh_seeds_and_alone_sees_the_test_split(tmp_path, trained):
    result, works = run(tmp_path)
    assert result.winner == {"learning_rate": 0.03}
    (tuning, on_test), (finals, final_on_test) = trained
    assert tuning == [(point, seed) for point in POINTS for seed in (0, 1)] and not on_test
    assert finals == [(result.winner, seed) for seed in (10_000, 10_001, 10_002)] and final_on_test
    assert result.tuned.test == {} and result.final.test["accuracy"].shape == (3,)
    assert result.tuned.diverged.tolist() == [False] * 4 + [True] * 2
    assert [work.runs for work in works] == [6, 3] and all(work.seconds > 0 for work in works)


def test_fresh_seeds_are_counted_from_the_first_of_tuning(tmp_path, trained):
    run(tmp_path, seeds=(10_000, 10_001), reruns=2)
    assert [seed for _, seed in trained[1][0]] == [20_000, 20_001]


def test_nothing_is_trained_twice(tmp_path, trained):
    first, _ = run(tmp_path)
    again, works = run(tmp_path)
    assert len(trained) == 2 and works == []
    np.testing.assert_array_equal(again.tuned.curves["loss"], first.tuned.curves["loss"])
    np.testing.assert_array_equal(again.final.test["accuracy"], first.final.test["accuracy"])


def test_a_seed_more_trains_that_seed_alone(tmp_path, trained):
    run(tmp_path)
    result, _ = run(tmp_path, seeds=(0, 1, 2))
    assert trained[2][0] == [(point, 2) for point in POINTS]
    assert result.tuned.seeds.tolist() == [0, 1, 2] * 3


def test_a_run_that_was_lost_is_trained_again_with_its_slice(tmp_path, trained):
    first, _ = run(tmp_path)
    before = {file: file.read_text() for file in tmp_path.rglob("*.json")}
    lost = sorted(tmp_path.rglob("tune-*-1.json"))[0]
    lost.unlink()
    again, works = run(tmp_path)
    assert trained[2] == trained[0] and [work.runs for work in works] == [1]
    np.testing.assert_array_equal(again.tuned.curves["loss"], first.tuned.curves["loss"])
    assert {file for file, text in before.items() if file.read_text() != text} == {lost}  # only its seconds differ


def test_without_reruns_the_test_split_stays_unseen(tmp_path, trained):
    result, _ = run(tmp_path, reruns=0)
    assert len(trained) == 1 and result.final.test == {} and result.final.seeds.tolist() == [0, 1]
    assert result.final.points == (result.winner,)


def test_what_decides():
    """The target; without one accuracy, where it is evaluated, else the loss."""
    goal = Target("loss", False, 0.5)
    assert protocol.goal_of(goal, ["loss", "validation/loss"]) == (goal, "validation/loss")
    assert protocol.goal_of(None, ["validation/loss", "validation/accuracy"])[1] == "validation/accuracy"
    assert protocol.goal_of(None, ["accuracy", "validation/loss"])[1] == "validation/loss"  # training's does not count


def test_how_far_the_runs_are(tmp_path):
    lives = []
    result, _ = protocol.run(
        tmp_path, "minibatch_sgd", build(optimizer="minibatch_sgd"), POINTS, (0, 1), 0, lives.append
    )
    assert [(live.done, live.ended, live.diverged) for live in lives] == [(0.5, 0, 2), (1.0, 6, 2)]
    best = result.tuned.curves["validation/accuracy"][:4].max(axis=0)
    assert [live.best for live in lives] == [best[0], max(best)] and lives[0].metric == "accuracy"


def test_groups_of_runs_add_up():
    """Two groups of two runs and two evaluations each: the first loses one, and the second another."""
    lives = []
    report = protocol.follow(Target("loss", False, 0.0), 4, lives.append)
    for done, ended, loss in ((1, 0, [0.5, 1.0]), (2, 2, [0.4, np.nan]), (3, 2, [0.6, np.inf]), (4, 4, [0.3, np.nan])):
        report(done, 4, ended, {"loss": np.array(loss), "validation/loss": np.array(loss)})
    assert [(live.ended, live.diverged, live.best) for live in lives] == [
        (0, 0, 0.5),
        (2, 1, 0.4),
        (2, 2, 0.4),
        (4, 2, 0.3),
    ]


def test_stored_runs_give_the_same_result(tmp_path, trained):
    """Without training; and without all of the runs there is none."""
    first, _ = run(tmp_path)
    target = build().target
    found = protocol.stored(tmp_path, "minibatch_sgd", POINTS, (0, 1), 3, target)
    assert found.winner == first.winner and len(trained) == 2
    np.testing.assert_array_equal(found.final.seconds, first.final.seconds)
    with pytest.raises(protocol.Unfinished, match="3 of 9 tune runs of minibatch_sgd are not there yet"):
        protocol.stored(tmp_path, "minibatch_sgd", POINTS, (0, 1, 2), 3, target)


def test_compilation_on_the_clock(tmp_path):
    result, works = run(tmp_path)
    counted = protocol.counting_compilation(result)
    share = works[0].compile_seconds / 6
    np.testing.assert_allclose(counted.tuned.seconds, result.tuned.seconds + share)
    np.testing.assert_allclose(counted.final.seconds, result.final.seconds + works[1].compile_seconds / 3)
