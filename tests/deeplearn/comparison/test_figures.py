"""What the figures show, read back from matplotlib."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from deeplearn.comparison import figures
from deeplearn.experiment import Target


@pytest.fixture
def figure():
    return Figure(layout="constrained")


def test_curves_are_those_of_the_final_runs(figure, outcomes):
    """Along epochs; and the target, where its metric is."""
    outcomes[0].results[0].final.curves["loss"] = np.full((3, 4), 7.0)
    figures.curves(figure, outcomes[0])
    loss, _, accuracy = figure.axes
    slow, quick = loss.lines
    assert slow.get_label() == "slow (0.1)" and slow.get_xydata().tolist() == [[1, 7], [2, 7], [3, 7], [4, 7]]
    assert quick.get_label() == "quick (0.1)" and max(quick.get_ydata()) < 1
    assert len(loss.lines) == 2 and accuracy.lines[2].get_ydata() == [0.8, 0.8]


def test_rates_at_which_runs_diverged_are_marked(figure, outcomes):
    """All runs at the rate 10 did; of the others there is a line."""
    figures.sensitivity(figure, outcomes[0])
    lines = figure.axes[0].lines
    crosses = [line.get_xdata().tolist() for line in lines if line.get_marker() == "x"]
    values = [line.get_ydata()[0] for line in lines if line.get_marker() == "o"]
    assert crosses == [[10.0]] * 2 and values == [0.9, 0.9]


@pytest.mark.parametrize(
    "metric, goal, scale",
    [
        ("validation/loss", Target("loss", False, 0.2), "log"),
        ("validation/accuracy", Target("accuracy", True, 0.8), "linear"),
    ],
)
def test_what_falls_is_drawn_in_log(figure, outcomes, metric, goal, scale):
    """And a chance never."""
    curves = outcomes[0].results[0].tuned.curves
    curves["validation/loss"] = curves["validation/loss"] * 2
    figures.budget(figure, outcomes[0]._replace(metric=metric, goal=goal))
    value, chance = figure.axes
    assert (value.get_yscale(), chance.get_yscale()) == (scale, "linear")
    assert [line.get_ydata().tolist() for line in chance.lines] == [[0.5, 1.0]] * 2
