import csv

import numpy as np
import pytest

from deeplearn.comparison import records, store


@pytest.fixture
def rows(outcomes):
    return records.columns(outcomes[0])


def test_a_row_an_evaluation(rows):
    """Two optimizers, of nine runs with four evaluations each."""
    assert {len(column) for column in rows.values()} == {2 * 9 * 4}
    assert rows["phase"].count("final") == 2 * 3 * 4 and rows["diverged"].count(True) == 2 * 3 * 4
    at = next(
        i for i in range(72) if (rows["optimizer"][i], rows["phase"][i], rows["step"][i]) == ("quick", "final", 30)
    )
    row = {name: column[at] for name, column in rows.items()}
    assert (row["workload"], row["learning_rate"], row["seed"], row["examples"], row["epoch"]) == (
        "one",
        0.1,
        0,
        480,
        3.0,
    )
    assert row["seconds"] == 3.0 and row["validation/accuracy"] == 0.5


def test_without_reruns_no_run_stands_twice(outcomes):
    """The final runs are those of tuning then, and have seen no test split."""
    alone = [result._replace(final=result.final._replace(test={})) for result in outcomes[0].results]
    assert [phase for phase, *_ in records.phases(outcomes[0]._replace(results=alone))] == ["tune"] * 2
    assert [phase for phase, *_ in records.phases(outcomes[0])] == ["tune", "final"] * 2


def test_csv_and_parquet_say_the_same(tmp_path, rows):
    rows["b1"] = [0.5, *[None] * 71]
    records.write_csv(tmp_path / "x.csv", rows)
    records.write_parquet(tmp_path / "x.parquet", rows)
    with open(tmp_path / "x.csv") as file:
        text = list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "x.parquet").to_pydict()
    assert list(parquet) == list(text[0]) == list(rows)
    for name in ("loss", "seconds", "learning_rate"):
        np.testing.assert_array_equal(np.array(parquet[name], float), [float(row[name]) for row in text])
    assert parquet["b1"][:2] == [0.5, None] and text[1]["b1"] == ""
    assert parquet["step"][0] == 10 and parquet["diverged"][0] is False


def test_tensorboard_shows_each_run(tmp_path, outcomes):
    """Read back by TensorBoard itself; a second report does not show runs twice."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):
        records.write_events(tmp_path / "events", outcomes[0])
    places = sorted(
        str(path.parent.relative_to(tmp_path / "events")) for path in (tmp_path / "events").rglob("events*")
    )
    quick = f"quick/0.1-{store.identity('quick', {'learning_rate': 0.1})[:4]}"
    assert places[:4] == [f"{quick}/{run}" for run in ("final-0", "final-1", "final-2", "tune-0")]
    assert len(places) == len(set(places)) == 18
    (run,) = (tmp_path / "events" / "slow").glob("10-*/tune-1")
    events = accumulator.EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20]  # it diverged after that
    assert [round(event.value, 3) for event in events.Scalars("validation/accuracy")] == [0.5, 0.9, 0.9, 0.9]


def test_points_that_read_alike_stay_apart(tmp_path, outcomes):
    """In three digits both rates are 0.1."""
    (first, *_) = outcomes[0].results
    tuned = first.tuned._replace(points=({"learning_rate": 0.1}, {"learning_rate": 0.10004}))
    alike = outcomes[0]._replace(results=[first._replace(tuned=tuned)])
    records.write_events(tmp_path / "events", alike)
    assert len(list((tmp_path / "events").rglob("tune-*"))) == 6
