import numpy as np
import pytest

from deeplearn.comparison import protocol, sweep
from deeplearn.config import base_config
from deeplearn.data import synthetic
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import wire
from deeplearn.models.mlp import MLP
from deeplearn.tasks.classification import classification


def build(**fields):
    def split(number, seed):
        random = np.random.RandomState(seed)
        labels = random.randint(0, 3, number).astype(np.int32)
        images = random.standard_normal((number, 2, 2, 1)).astype(np.float32) + labels[:, None, None, None]
        return Arrays({"image": images, "label": labels})

    data = Data("blobs", split(96, 0), split(30, 1), split(30, 2), ("a", "b", "c"))
    config = base_config(**{"batch_size": 16, "epochs": 2.0, "target": "accuracy>=0.5", **fields})
    return wire(config, classification(MLP((8,), 3), (2, 2, 1), 3), data)


POINTS = [{"learning_rate": rate} for rate in (1e-5, 0.03, 1e30)]


@pytest.fixture
def trained(monkeypatch):
    """What each call of `sweep` trains."""
    calls = []

    def spy(name, experiment, runs, *, test, **more):
        calls.append((list(runs), test))
        return sweep.sweep(name, experiment, runs, test=test, **more)

    monkeypatch.setattr(protocol, "sweep", spy)
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


def test_a_run_that_was_lost_is_trained_again_alone(tmp_path, trained):
    first, _ = run(tmp_path)
    sorted(tmp_path.rglob("tune-*-1.json"))[0].unlink()
    again, _ = run(tmp_path)
    assert len(trained[2][0]) == 1 and trained[2][0][0][1] == 1
    np.testing.assert_allclose(again.tuned.curves["loss"], first.tuned.curves["loss"], rtol=2e-3)


def test_without_reruns_the_test_split_stays_unseen(tmp_path, trained):
    result, _ = run(tmp_path, reruns=0)
    assert len(trained) == 1 and result.final.test == {} and result.final.seeds.tolist() == [0, 1]
    assert result.final.points == (result.winner,)


def test_regression_is_judged_by_its_loss():
    data = synthetic.sequences()
    experiment = build()._replace(data=data, target=None)
    goal, metric = protocol.goal_of(experiment)
    assert (goal.metric, goal.rises, metric) == ("loss", False, "validation/loss")
