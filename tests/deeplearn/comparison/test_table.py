"""Against cases worked out by hand."""

import math

import numpy as np
import pytest

from deeplearn.comparison import table
from deeplearn.comparison.sweep import Sweep
from deeplearn.experiment import Target

NAN = math.nan
UP, DOWN = Target("accuracy", True, 0.8), Target("loss", False, 0.5)


def make(accuracy, loss=None, rates=(0.1, 0.1, 1.0, 1.0)):
    accuracy = np.array(accuracy, float)
    loss = np.ones_like(accuracy) if loss is None else np.array(loss, float)
    steps = np.arange(1, accuracy.shape[1] + 1) * 10
    return Sweep(
        optimizer="sgd",
        points=tuple({"learning_rate": rate} for rate in dict.fromkeys(rates)),
        point=np.unique(rates, return_inverse=True)[1],
        seeds=np.tile([0, 1], len(rates) // 2),
        steps=steps,
        examples=steps * 16,
        epochs=steps / 10,
        seconds=np.tile(steps / 100, (len(rates), 1)),
        curves={"loss": loss, "validation/loss": loss, "validation/accuracy": accuracy},
        test={},
        compile_seconds=np.full(len(rates), 0.5),
    )


SWEEP = make(
    [[0.5, 0.7, 0.9], [0.6, 0.8, 0.7], [0.9, 0.9, 0.1], [0.9, 0.9, 0.2]],
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, NAN, NAN], [1.0, 1.0, 1.0]],
)
METRIC = "validation/accuracy"


def test_diverged_runs_are_infinitely_bad():
    assert SWEEP.diverged.tolist() == [False, False, True, False]
    assert table.final(SWEEP, METRIC, UP).tolist() == [0.9, 0.7, -math.inf, 0.2]
    assert table.final(SWEEP, "validation/loss", DOWN).tolist() == [1.0, 1.0, math.inf, 1.0]


@pytest.mark.parametrize("goal", [UP, Target("accuracy", False, 0.1)], ids=["rises", "falls"])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_value_that_is_not_finite_is_never_the_best(goal, value, place):
    """Though the losses are; whether its point comes first or last, and whether it is the last value or one before."""
    for at in (0, 1, 2):
        spoilt = [0.5, 0.5, 0.5]
        spoilt[at] = value
        rows = [[0.5, 0.5, 0.5]] * 4
        rows[2 * place : 2 * place + 2] = [spoilt] * 2
        sweep = make(rows)
        assert not sweep.diverged.any()
        assert table.first_reached(sweep, METRIC, goal).tolist() == [3] * 4
        if at == 2:
            assert table.best_point(sweep, METRIC, goal) == 1 - place
            assert table.final(sweep, METRIC, goal)[2 * place] == (-math.inf if goal.rises else math.inf)
        row = table.row(table.of_point(sweep, place), sweep, METRIC, goal)
        assert row.best == 0.5 and row.reached == "0 of 2"


def test_the_median_of_seeds_has_the_worst_for_a_seed_without_a_number():
    sweep = make([[NAN, 0.9], [NAN, NAN], [0.7, 0.8]], rates=(0.1, 0.1, 0.1))._replace(
        seeds=np.arange(3), test={"accuracy": np.array([0.9, NAN, 0.8])}
    )
    row = table.row(sweep, sweep, METRIC, UP)
    assert (row.best, row.final, row.test) == (0.8, 0.8, 0.8)


@pytest.mark.parametrize(
    "values, rises, best",
    [([NAN, 0.5], True, 0.5), ([0.5, NAN], False, 0.5), ([math.inf, 1.0], True, 1.0), ([-math.inf, 1.0], False, 1.0)],
)
def test_best_of(values, rises, best):
    assert table.best_of(values, Target("x", rises, 0.0)) == best
    assert math.isnan(table.best_of([NAN, NAN], Target("x", rises, 0.0)))


def test_first_reached():
    """A run that diverges has reached nothing, even where it was above the target before."""
    assert table.first_reached(SWEEP, METRIC, UP).tolist() == [2, 1, 3, 0]


def test_the_point_at_which_half_the_seeds_diverge_is_not_the_best():
    assert table.best_point(SWEEP, METRIC, UP) == 0


def test_the_first_to_reach_the_target_is_the_best():
    """Though another ends higher; where none reaches it, the last value counts."""
    sweep = make([[0.5, 0.85, 0.85]] * 2 + [[0.5, 0.6, 0.95]] * 2)
    assert table.best_point(sweep, METRIC, UP) == 0
    assert table.best_point(sweep, METRIC, UP._replace(value=0.99)) == 1


def test_the_test_value_is_that_of_the_winners_runs():
    sweep = make([[0.9]] * 4)._replace(test={"accuracy": np.array([0.1, 0.3, 0.5, 0.9])})
    assert table.row(table.of_point(sweep, 1), sweep, METRIC, UP).test == pytest.approx(0.7)
    assert math.isnan(table.row(table.of_point(SWEEP, 0), SWEEP, METRIC, UP).test)


@pytest.mark.parametrize(
    "accuracy, expected",
    [([0.5, 1.0, 1.0, 0.5], "1.4"), ([0.95, 1.0, 0.5, 0.5], ">1.2"), ([0.5, 0.9, NAN, NAN], "0.2")],
)
def test_basin(accuracy, expected):
    sweep = make([[value] for value in accuracy], [[1.0 if value == value else NAN] for value in accuracy])
    sweep = sweep._replace(points=tuple({"learning_rate": 10.0**-i} for i in range(4)), point=np.arange(4))
    assert table.basin(sweep, METRIC, UP) == expected
    assert table.basin(sweep._replace(points=({"b1": 0.5},) * 4), METRIC, UP) == ""


def test_no_basin_where_everything_diverged():
    assert table.basin(make([[0.9]] * 4, [[NAN]] * 4), METRIC, UP) == ""


def test_of_equal_points_the_one_with_the_lower_loss():
    sweep = make([[0.9]] * 4, [[2.0], [1.0], [1.0], [1.5]])
    assert table.best_point(sweep, METRIC, UP) == 1


def test_row():
    row = table.row(table.of_point(SWEEP, 0), SWEEP, METRIC, UP)
    assert (row.optimizer, row.point) == ("sgd", {"learning_rate": 0.1})
    assert row.best == pytest.approx(0.85) and row.final == pytest.approx(0.8) and row.spread == pytest.approx(0.1)
    assert row.steps_to_target == 25 and row.seconds_to_target == pytest.approx(0.25)
    assert row.examples_to_target == 400 and row.compile_seconds == 2.0  # of all that tuned, and no reruns
    assert (row.reached, row.diverged) == ("2 of 2", "1 of 4")


def test_the_target_that_half_the_seeds_never_reach_is_infinitely_far():
    sweep = make([[0.5, 0.6], [0.5, 0.9]], rates=(0.1, 0.1))
    row = table.row(sweep, sweep, METRIC, UP)
    assert row.steps_to_target == math.inf and row.reached == "1 of 2"


def test_everything_diverged():
    sweep = make([[0.5, 0.6], [0.5, 0.9]], [[NAN, NAN], [1, NAN]], rates=(0.1, 0.1))
    row = table.row(sweep, sweep, METRIC, UP)
    assert row.final == -math.inf and row.steps_to_target == math.inf and row.diverged == "2 of 2"
