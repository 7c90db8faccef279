"""Against a table worked out by hand."""

import math

import numpy as np

from deeplearn.comparison import summary
from deeplearn.comparison.protocol import Result
from deeplearn.comparison.sweep import Sweep
from deeplearn.experiment import Target

GOAL = Target("accuracy", True, 0.8)


def result(optimizer, reached, seconds_a_step):
    """Three seeds that reach the target at these evaluations of four, 4 for never; ten steps and an epoch apart."""
    accuracy = np.array([[0.9 if at >= first else 0.5 for at in range(4)] for first in reached])
    steps = np.arange(1, 5) * 10
    sweep = Sweep(
        optimizer=optimizer,
        points=({"learning_rate": 0.1},),
        point=np.zeros(3, int),
        seeds=np.arange(3),
        steps=steps,
        epochs=steps / 10,
        seconds=np.tile(steps * seconds_a_step, (3, 1)),
        curves={"loss": 1 - accuracy, "validation/loss": 1 - accuracy, "validation/accuracy": accuracy},
        test={},
        compile_seconds=0.0,
    )
    return Result(sweep, sweep.points[0], sweep)


WORKLOADS = [
    summary.Workload(
        "one", [result("slow", (1, 1, 1), 0.2), result("quick", (3, 0, 1), 0.1)], GOAL, "validation/accuracy"
    ),
    summary.Workload(
        "two", [result("slow", (0, 0, 0), 0.2), result("quick", (4, 4, 0), 0.1)], GOAL, "validation/accuracy"
    ),
]


def test_times():
    np.testing.assert_allclose(summary.times(WORKLOADS, "epochs"), [[2, 1], [2, math.inf]])
    np.testing.assert_allclose(summary.times(WORKLOADS, "seconds"), [[4, 2], [2, math.inf]])


def test_markdown():
    """slow: ratios in seconds 2 and 1, score (2/3 + 1) / 2; quick: 1 and never, 1/2."""
    text = summary.markdown(WORKLOADS)
    assert "| slow | 0.83 | 1.00 | 1 (2, 0, 0) | 2 | 1 |" in text
    assert "| quick | 0.50 | 0.50 | 2 (1, 0, 1) | 2 | - |" in text
    assert text.index("| slow |") < text.index("| quick |")


def test_files(tmp_path):
    paths = summary.write(tmp_path, WORKLOADS)
    assert [path.rsplit("/")[-1] for path in paths] == ["summary.md", "profiles.png"]
    assert (tmp_path / "profiles.png").read_bytes()[:4] == b"\x89PNG"
