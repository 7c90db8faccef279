"""Against a table worked out by hand."""

import math

import numpy as np

from deeplearn.comparison import summary


def test_times(outcomes):
    np.testing.assert_allclose(summary.times(outcomes, "epochs"), [[2, 1], [2, math.inf]])
    np.testing.assert_allclose(summary.times(outcomes, "seconds"), [[4, 2], [2, math.inf]])


def test_profiles(outcomes):
    """In seconds slow takes twice quick's time on one, and is alone on two; the bands hold the median's profile."""
    found = summary.profiles(outcomes, "seconds")
    assert found.rho[0, [0, -1]].tolist() == [0.5, 1.0] and found.rho[1, [0, -1]].tolist() == [0.5, 0.5]
    assert found.rho[0, found.taus < 2].max() == 0.5
    assert (found.low <= found.rho).all() and (found.rho <= found.high).all() and (found.low < found.high).any()


def test_a_single_seed_has_no_band(outcomes):
    one = [
        outcome._replace(results=[result._replace(final=first(result.final)) for result in outcome.results])
        for outcome in outcomes
    ]
    assert summary.profiles(one, "epochs").low is None


def first(sweep):
    """Its first run alone."""
    return sweep._replace(
        point=sweep.point[:1],
        seeds=sweep.seeds[:1],
        seconds=sweep.seconds[:1],
        curves={name: x[:1] for name, x in sweep.curves.items()},
        test={name: x[:1] for name, x in sweep.test.items()},
        compile_seconds=sweep.compile_seconds[:1],
    )


def test_fewer_seeds_are_repeated(outcomes):
    """A median of one and of three."""
    one = outcomes[0]._replace(results=[r._replace(final=first(r.final)) for r in outcomes[0].results])
    assert summary.run_times([one, outcomes[1]], "epochs").shape == (3, 2, 2)
    np.testing.assert_allclose(summary.times([one, outcomes[1]], "epochs"), [[2, 1], [4, math.inf]])


def test_only_what_all_workloads_have_is_ranked(outcomes):
    alone = [outcomes[0], outcomes[1]._replace(results=outcomes[1].results[1:])]
    assert [[r.tuned.optimizer for r in o.results] for o in summary.common(alone)] == [["quick"], ["quick"]]


def test_markdown(outcomes):
    """slow: ratios in seconds 2 and 1, score (2/3 + 1) / 2; quick: 1 and never, 1/2."""
    text = summary.markdown(outcomes)
    assert "| slow | 0.83 | 1.00 | 1 (2, 0, 0) | 2 | 1 |" in text
    assert "| quick | 0.50 | 0.50 | 2 (1, 0, 1) | 2 | - |" in text
    assert text.index("| slow |") < text.index("| quick |")
