"""Ratios, goals, the table and JSON, from figures made up."""

import json

import pytest

from deeplearn.benchmark import machine, report
from deeplearn.benchmark.timing import Figures


def figures(*rates, detail=""):
    return Figures(list(rates), 0.5, 1_000_000, 10, detail)


RESULTS = {
    "mnist_cnn_64": {
        "ours": figures(300.0, 400.0, 200.0),
        "flax": figures(100.0, 100.0, 100.0),
        "torch": figures(200.0, 200.0, 200.0, detail="channels last"),
        "compiled": "torch.compile: no compiler",
    },
    "lstm": {
        "ours": figures(80.0, 80.0, 80.0),
        "flax": figures(40.0, 40.0, 40.0),
        "torch": figures(80.0, 80.0, 80.0),
        "compiled": "torch.compile: no compiler",
    },
}


def test_ratios_are_medians_over_rounds():
    assert report.round_ratios(RESULTS["mnist_cnn_64"], "torch") == [1.5, 2.0, 1.0]
    assert report.ratios(RESULTS, "torch") == {"mnist_cnn_64": 1.5, "lstm": 1.0}
    assert report.ratios(RESULTS, "compiled") == {}


def test_goals():
    judged = {(goal.peer, goal.statistic): value for goal, value in report.judge(RESULTS)}
    assert judged == {
        ("torch", "geometric mean"): pytest.approx(1.5**0.5),
        ("torch", "least"): 1.0,
        ("flax", "least"): 3.0,  # the LSTM does not pool
    }
    lines = report.verdicts(RESULTS).splitlines()
    assert [line.split()[0] for line in lines] == ["missed", "missed", "met"]


def test_the_table():
    head, rule, cnn, lstm, mean = report.markdown(RESULTS).splitlines()
    assert {line.count("|") for line in (head, rule, cnn, lstm, mean)} == {9}
    assert "| 300 | 100 | 3.00 (2.00 to 4.00) | 200 (channels last) | 1.50 (1.00 to 2.00) |" in cnn
    assert "| torch.compile: no compiler |  |" in cnn
    assert mean == "| geometric mean |  |  | 2.45 |  | 1.22 |  |  |"


def test_json_holds_every_figure():
    content = json.loads(json.dumps({**report.as_json(RESULTS), "machine": machine.describe()}))
    cnn = content["cases"]["mnist_cnn_64"]
    assert cnn["batch_size"] == 64
    assert cnn["contenders"]["ours"]["rates"] == [300.0, 400.0, 200.0]
    assert cnn["contenders"]["ours"]["examples_per_second"] == 300.0
    assert cnn["contenders"]["compiled"] == {"not_available": "torch.compile: no compiler"}
    assert cnn["ours_over"]["torch"] == {"median": 1.5, "least": 1.0, "greatest": 2.0}
    assert set(content["geometric_means"]) == {"flax", "torch"}
    assert [goal["met"] for goal in content["goals"]] == [False, False, True]
    assert content["machine"]["cores"] >= 1 and content["machine"]["versions"]["jax"]
