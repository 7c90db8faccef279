import json

import numpy as np
import pytest

from deeplearn.comparison import store
from deeplearn.comparison.sweep import Sweep
from deeplearn.errors import UserError

POINTS = ({"learning_rate": 0.1, "b1": 0.5}, {"learning_rate": 0.2, "b1": 0.9})
RUNS = [(point, seed) for point in POINTS for seed in (0, 7)]
NAME = "adam(b2=0.9)"


def make():
    rng = np.random.default_rng(0)
    curve = rng.random((4, 3)).astype(np.float32)
    curve[2, 1:] = np.nan
    return Sweep(
        optimizer=NAME,
        points=POINTS,
        point=np.array([0, 0, 1, 1]),
        seeds=np.array([0, 7, 0, 7]),
        steps=np.array([5, 10, 12]),
        examples=np.array([80, 160, 192]),
        epochs=np.array([1.0, 2.0, 2.4]),
        seconds=rng.random((4, 3)),
        curves={"loss": curve, "validation/loss": curve + 1},
        test={"accuracy": rng.random(4)},
        compile_seconds=rng.random(4),
    )


def test_what_is_written_is_read_to_the_bit(tmp_path):
    sweep = make()
    store.write(tmp_path, "tune", sweep)
    found = store.read(tmp_path, NAME, "tune", RUNS)
    assert found.points == POINTS
    for name in ("point", "seeds", "steps", "examples", "epochs", "seconds", "compile_seconds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sweep, name))
    for name, values in sweep.curves.items():
        np.testing.assert_array_equal(found.curves[name], values)
    np.testing.assert_array_equal(found.test["accuracy"], sweep.test["accuracy"])
    assert found.diverged.tolist() == [False, False, True, False]


def test_runs_come_back_in_the_order_asked_for(tmp_path):
    store.write(tmp_path, "tune", make())
    found = store.read(tmp_path, NAME, "tune", RUNS[::-1])
    assert (
        found.points == POINTS[::-1] and found.point.tolist() == [0, 0, 1, 1] and found.seeds.tolist() == [7, 0, 7, 0]
    )
    np.testing.assert_array_equal(found.seconds, make().seconds[::-1])


def test_what_is_missing(tmp_path):
    """A run is another with another optimizer, setting, seed or phase."""
    assert store.missing(tmp_path, NAME, "tune", RUNS) == RUNS
    store.write(tmp_path, "tune", make())
    more = [*RUNS, (POINTS[0], 8), ({"learning_rate": 0.1, "b1": 0.6}, 0)]
    assert store.missing(tmp_path, NAME, "tune", more) == more[-2:]
    assert store.missing(tmp_path, NAME, "final", RUNS) == RUNS
    assert store.missing(tmp_path, "adam(b2=0.8)", "tune", RUNS) == RUNS


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("0.1", "0.3", 1),
        lambda text: "[]",
        lambda text: json.dumps({"run": 1}),
    ],
    ids=["cut", "changed", "a list", "no checksum"],
)
def test_a_damaged_record_is_named_and_costs_no_other(tmp_path, damage):
    store.write(tmp_path, "tune", make())
    file = store.path(tmp_path, NAME, "tune", RUNS[1])
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=f"{file.name} is damaged; delete it") as raised:
        store.read(tmp_path, NAME, "tune", RUNS)
    assert "\n" not in str(raised.value)
    file.unlink()
    assert store.missing(tmp_path, NAME, "tune", RUNS) == [RUNS[1]]
    store.read(tmp_path, NAME, "tune", RUNS[2:])


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        store.write(tmp_path / "file", "tune", make())
