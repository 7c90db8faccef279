"""Against cases worked out by hand, brute force, SciPy, and the slips of others."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn.comparison import scores

INF = math.inf
times = st.lists(st.one_of(st.floats(1, 100), st.just(INF)), min_size=1, max_size=6)

TIMES = np.array(
    [
        [10.0, 30.0, INF, INF],
        [20.0, 10.0, 50.0, INF],
        [80.0, 10.0, INF, INF],
    ]
)
RATIOS = [[1, 3, INF, INF], [2, 1, 1, INF], [8, 1, INF, INF]]


def test_ratios():
    np.testing.assert_array_equal(scores.performance_ratios(TIMES), RATIOS)


@pytest.mark.parametrize("wrong", [math.nan, 0.0, -1.0])
def test_a_time_that_is_none(wrong):
    """A filter for NaN that filters nothing was a slip of AlgoPerf's."""
    with pytest.raises(ValueError, match="positive"):
        scores.performance_ratios(np.array([[1.0, wrong]]))


def test_profile():
    profile = scores.performance_profile(np.array(RATIOS), np.array([1, 2, 3, 7.9, 8, 1e9]))
    np.testing.assert_allclose(
        profile, [[0.25, 0.25, 0.5, 0.5, 0.5, 0.5], [0.5, 0.75] + [0.75] * 4, [0.25] * 4 + [0.5] * 2]
    )


def test_score():
    """The number of workloads is that of the argument: dividing by 8 always was another slip."""
    np.testing.assert_allclose(scores.profile_score(np.array(RATIOS)), [(1 + 1 / 3) / 4, (2 / 3 + 2) / 4, 1 / 4])


@given(st.lists(times.map(lambda t: (t * 3)[:3]), min_size=1, max_size=4))
@example([[1.0, 2.0, math.inf]])
@example([[4.0, 1.0, 1.0], [1.0, 4.0, math.inf]])
def test_the_score_is_the_area_under_the_profile(rows):
    ratios = scores.performance_ratios(np.array(rows))
    taus = np.linspace(1, 4, 6001)
    area = np.trapezoid(scores.performance_profile(ratios, taus), taus, axis=1) / 3
    np.testing.assert_allclose(scores.profile_score(ratios), area, atol=2e-3)


def test_speed_up():
    result = scores.speed_up(np.array([1.0, 8.0, 3.0, INF, INF]), np.array([4.0, 8.0, INF, 2.0, INF]))
    assert result == (2.0, 2, 1, 1, 1)
    assert math.isnan(scores.speed_up(np.array([INF]), np.array([1.0])).factor)


@given(times, st.booleans())
@example([1.0, 1.0, 2.0, 3.0], False)
@example([1.0, 2.0], True)
@example([1.0], True)
def test_best_of_k_is_the_mean_over_all_draws(values, rises):
    if rises:
        values = [-v for v in values]
    best = max if rises else min
    for k in range(1, len(values) + 1):
        draws = [best(draw) for draw in itertools.combinations(values, k)]
        assert scores.best_of(np.array(values), rises)[k - 1] == pytest.approx(sum(draws) / len(draws))
        expected = sorted(draws, reverse=rises)[math.ceil(len(draws) / 2) - 1]
        assert scores.median_best_of(np.array(values), rises)[k - 1] == expected


@given(st.lists(st.booleans(), min_size=1, max_size=7))
@example([False])
@example([True, False, False])
@example([False, True])
def test_the_chance_of_reaching_counts_draws(reached):
    chances = [np.mean([any(d) for d in itertools.combinations(reached, k)]) for k in range(1, len(reached) + 1)]
    np.testing.assert_allclose(scores.chance_of_reaching(np.array(reached)), chances, atol=1e-12)


RATES = np.array([1e-4, 1e-3, 1e-2, 1e-1])


@pytest.mark.parametrize(
    "values, rises, low, high, is_open",
    [
        ([0.5, 1.0, 1.0, 0.5], True, 10**-3.2, 10**-1.8, False),
        ([0.95, 1.0, 0.5, 0.5], True, 1e-4, 10**-2.8, True),
        ([2.0, 1.0, 1.2, INF], False, 10**-3.1, 10**-2.5, False),
        ([INF, INF, 1.0, math.nan], False, 1e-2, 1e-2, False),
        ([0.9, 0.5, 1.0, 0.8], True, 10**-2.2, 10**-1.5, False),
    ],
    ids=["a plateau", "to the grid's end", "a loss, beside a divergence", "one rate", "another hill does not count"],
)
def test_basin(values, rises, low, high, is_open):
    found = scores.basin(RATES[::-1], np.array(values)[::-1], rises)
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9)
    assert found.decades == pytest.approx(math.log10(high / low), abs=1e-9) and found.open == is_open


def test_no_basin():
    with pytest.raises(ValueError, match="finite"):
        scores.basin(RATES, np.full(4, INF), rises=False)


def test_the_band_is_scipys_where_there_is_one_workload():
    values = np.random.default_rng(1).normal(size=(30, 1))
    low, high = scores.bootstrap(values, lambda v: v.mean((1, 2)), resamples=4000)
    result = scipy.stats.bootstrap((values[:, 0],), np.mean, method="percentile", n_resamples=4000, rng=0)
    np.testing.assert_allclose([low, high], result.confidence_interval, atol=0.02)


def test_a_band_is_drawn_within_each_workload():
    """Seeds that agree on each workload leave nothing to chance, however the workloads differ."""
    values = np.tile([1.0, 5.0, INF], (4, 1))
    low, high = scores.bootstrap(values, lambda v: np.median(v, axis=1), resamples=50)
    np.testing.assert_array_equal(low, [1, 5, INF])
    np.testing.assert_array_equal(high, [1, 5, INF])


def test_the_seeds_of_a_workload_are_drawn_apart_from_the_others():
    """The two workloads' values of a seed add up to one: drawn together they would leave nothing to chance."""
    low, high = scores.bootstrap(np.array([[0.0, 1.0], [1.0, 0.0]]), lambda v: v.mean((1, 2)), resamples=200)
    assert low < 0.5 < high


def test_the_same_seed_gives_the_same_band():
    values = np.random.default_rng(1).normal(size=(8, 3))
    bands = [scores.bootstrap(values, lambda v: v.mean((1, 2)), resamples=100, seed=s) for s in (0, 0, 1)]
    assert bands[0] == bands[1] and bands[0] != bands[2]


@given(st.integers(0, 15), st.integers(0, 15))
@example(0, 0)
@example(1, 0)
@example(0, 6)
@example(5, 5)
def test_the_sign_test_is_scipys(wins, losses):
    ours = np.array([1.0] * wins + [3.0] * losses + [INF, 2.0])
    theirs = np.array([2.0] * (wins + losses) + [INF, 2.0])
    result = scores.sign_test(ours, theirs)
    assert result[:3] == (wins, wins + losses, 2)
    if wins + losses:
        assert result.p == pytest.approx(scipy.stats.binomtest(wins, wins + losses).pvalue)
