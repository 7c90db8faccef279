import csv
import json

import numpy as np
import pytest

from deeplearn.comparison import page, report
from deeplearn.experiment import Target


def test_the_table(outcomes):
    """The soonest at the target first; what the runs reached, and the test set's value, medians of three."""
    columns, (first, second) = report.cells(outcomes[0])
    row = dict(zip(columns, first, strict=True))
    assert row["optimizer"] == "quick" and second[0] == "slow"
    assert (row["steps to target"], row["examples to target"], row["seconds to target"]) == (20, 320, 2.0)
    assert (row["reached"], row["diverged"], row["test/accuracy"]) == ("3 of 3", "3 of 6", 0.1)
    assert row["seconds compiling"] == 4.5 and row["learning rate"] == "0.1"
    text = report.markdown(outcomes[1], "a title")
    assert text.startswith("# a title") and "| quick | 0.1 | 0.5 | 0.5 | 0.19 | 0.1 | - | - | - | 1 of 3 |" in text


def test_the_paired_statement(outcomes):
    """Slow is at the target after two evaluations each, quick after 4, 1 and 2: one seed each, and a tie."""
    assert report.paired(outcomes[0]) == ["quick reaches the target before slow: 1 of 2 seeds, 1 ties, p = 1"]
    assert report.paired(outcomes[1]) == ["slow reaches the target before quick: 2 of 2 seeds, 1 ties, p = 0.5"]


@pytest.mark.parametrize(
    "metric, goal",
    [("validation/accuracy", Target("accuracy", True, 2.0)), ("validation/loss", Target("loss", False, 0.0))],
)
def test_of_those_that_miss_the_target_the_best_comes_first(outcomes, metric, goal):
    """Whether more or less of the last value is better."""
    (slow, quick) = outcomes[0].results
    quick.final.curves[metric] = quick.final.curves[metric] + (-0.05 if goal.rises else 0.05)
    for final in (slow.final, quick.final):
        final.test[goal.metric] = np.zeros(3)
    for results in ([slow, quick], [quick, slow]):
        found = report.rows(outcomes[0]._replace(results=results, metric=metric, goal=goal))
        assert [row.optimizer for row in found] == ["slow", "quick"] and found[0].reached == "0 of 3"


def test_the_bands_are_those_of_the_final_runs(outcomes):
    outcomes[0].results[0].final.curves["loss"] = np.full((3, 4), 7.0)
    bands = report.document("t", outcomes[:1], {})["workloads"][0]["bands"]
    assert bands["slow"]["loss"]["middle"] == [7.0] * 4 and max(bands["quick"]["loss"]["middle"]) < 1


def test_the_document_is_json(outcomes):
    launch = {"command": "python -m deeplearn compare"}
    found = report.document("t", outcomes, {**launch, "resumed": [launch, {"command": "with lion"}]})
    json.dumps(page.finite(found), allow_nan=False)
    first = found["workloads"][0]
    assert found["command"] == "python -m deeplearn compare\nwith lion" and list(found["colours"]) == ["slow", "quick"]
    assert list(first["runs"][0]["curves"]) == ["loss", "validation/loss", "validation/accuracy"]
    assert len(first["runs"]) == 18 and sum(run["diverged"] for run in first["runs"]) == 6
    assert [run["winner"] for run in first["runs"][:6]] == [True] * 3 + [False] * 3
    assert first["budget"]["quick"]["k"] == [1, 2] and first["budget"]["quick"]["chance"] == [0.5, 1.0]
    assert first["sensitivity"]["slow"][1]["diverged"] == 3 and first["joined"]
    assert set(first["bands"]["slow"]["loss"]) == {"middle", "low", "high"} and first["target"] == 0.8
    assert len(found["profiles"]["seconds"]["rho"]["slow"]) == len(found["profiles"]["seconds"]["tau"])
    assert report.document("t", outcomes[:1], {})["profiles"] is None


def test_files(tmp_path, outcomes):
    """Of several workloads a directory each; a figure is there twice, as a picture and for a paper."""
    written = report.write(tmp_path, "2 workloads: 2 optimizers", outcomes, {})
    paths = [path.relative_to(tmp_path).as_posix() for path in written]
    assert (tmp_path / "one" / "table.md").read_text().startswith("# one: 2 optimizers")
    assert paths[:3] == ["report.html", "summary.md", "profiles.png"] and "two/budget.png" in paths
    for path in tmp_path.rglob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG" and path.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"
    with open(tmp_path / "one" / "table.csv") as file:
        assert [row["optimizer"] for row in csv.DictReader(file)] == ["quick", "slow"]
    assert {path.suffix for path in (tmp_path / "two").iterdir()} == {".md", ".csv", ".parquet", ".png", ".pdf"}


def test_one_workload_needs_no_directory(tmp_path, outcomes):
    paths = report.write(tmp_path, "t", outcomes[:1], {})
    assert {path.parent for path in paths} == {tmp_path} and not (tmp_path / "summary.md").exists()


def test_compilation_on_the_clock(tmp_path, outcomes):
    report.write(tmp_path, "t", outcomes[:1], {}, count_compile=True)
    with open(tmp_path / "table.csv") as file:
        assert [float(row["seconds_to_target"]) for row in csv.DictReader(file)] == pytest.approx([2.5, 4.5])
