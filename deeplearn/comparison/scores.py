"""Scores of optimizers, from the times and values of their runs: pure functions of NumPy arrays.

A time is in steps, examples or seconds; that of a run which never reaches the target, or diverges, is infinite. No
score drops such a run, and none divides by a number of workloads other than that of its own argument.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def performance_ratios(times: np.ndarray) -> np.ndarray:
    """r[s, w] = t[s, w] / min over s of t[s, w]: (S, W) to (S, W), 1 for the fastest optimizer on each workload.

    Infinite where the target is never reached, for every optimizer if none reaches it.

    >>> performance_ratios(np.array([[10.0, np.inf], [20.0, 5.0]])).tolist()
    [[1.0, inf], [2.0, 1.0]]

    Dolan and More 2002, Benchmarking optimization software with performance profiles, section 2.
    """
    times = np.asarray(times, float)
    if (np.isnan(times) | (times <= 0)).any():
        raise ValueError("times must be positive numbers, infinite where a target is never reached")
    fastest = times.min(axis=0)
    return np.where(np.isfinite(times), times / np.where(np.isfinite(fastest), fastest, 1.0), np.inf)


def performance_profile(ratios: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """rho[s, i] = the fraction of workloads w with r[s, w] <= tau[i]: (S, W) and (T,) to (S, T).

    >>> performance_profile(np.array([[1.0, np.inf]]), np.array([1.0, 4.0])).tolist()
    [[0.5, 0.5]]
    """
    return (np.asarray(ratios)[:, :, None] <= np.asarray(taus)).mean(axis=1)


def profile_score(ratios: np.ndarray, r_max: float = 4.0) -> np.ndarray:
    """The mean of rho_s(tau) over tau in [1, r_max], exactly: (S, W) to (S,).

        1 / (r_max - 1) integral_1^r_max rho_s(tau) dtau = mean over w of max(0, (r_max - r[s, w]) / (r_max - 1))

    1 is the fastest everywhere, 0 never within r_max of the fastest.

    >>> profile_score(np.array([[1.0, 2.5], [2.5, np.inf]])).tolist()
    [0.75, 0.25]

    Dahl et al. 2023, Benchmarking neural network training algorithms, section 4.4.
    """
    return np.maximum(0.0, (r_max - np.asarray(ratios, float)) / (r_max - 1)).mean(axis=1)


class SpeedUp(NamedTuple):
    """Of one optimizer over another.

    Fields:
      factor: the geometric mean of theirs / ours over the workloads on which both reach the target; NaN if none.
      both, ours, theirs, neither: the number of workloads on which both reach it, we alone, they alone, neither.
    """

    factor: float
    both: int
    ours: int
    theirs: int
    neither: int


def speed_up(ours: np.ndarray, theirs: np.ndarray) -> SpeedUp:
    """How much faster `ours` reaches the targets than `theirs`, (W,) times each.

    >>> speed_up(np.array([1.0, 7.0]), np.array([2.0, np.inf]))
    SpeedUp(factor=2.0, both=1, ours=1, theirs=0, neither=0)
    """
    here, there = np.isfinite(ours), np.isfinite(theirs)
    both = here & there
    logs = np.log(np.asarray(theirs)[both]) - np.log(np.asarray(ours)[both])
    factor = float(np.exp(logs.mean())) if both.any() else math.nan
    return SpeedUp(factor, *(int(n.sum()) for n in (both, here & ~there, there & ~here, ~here & ~there)))


def best_of(values: np.ndarray, rises: bool = False) -> np.ndarray:
    """E_k, the exact expectation of the best of k tuning points drawn without replacement, k = 1 .. n: (n,) to (n,).

    With the values from best to worst, v_1 .. v_n, the best of k is v_i with probability C(n - i, k - 1) / C(n, k).
    It is infinite for the k with which a draw of infinite values alone is possible: see `median_best_of`.

    >>> best_of(np.array([3.0, 1.0, 2.0])).round(3).tolist()
    [2.0, 1.333, 1.0]

    Dodge et al. 2019, Show your work, section 3, without replacement.
    """
    values = np.sort(np.asarray(values, float))
    values = values[::-1] if rises else values
    return np.array([_expectation(p, values) for p in _best_probabilities(len(values))])


def median_best_of(values: np.ndarray, rises: bool = False) -> np.ndarray:
    """The lower median of the best of k tuning points, k = 1 .. n, which some infinite values don't make infinite.

    >>> median_best_of(np.array([1.0, 2.0, np.inf])).tolist()
    [2.0, 1.0, 1.0]
    """
    values = np.sort(np.asarray(values, float))
    values = values[::-1] if rises else values
    chances = _best_probabilities(len(values)).cumsum(axis=1)
    return values[(chances >= 0.5 - 1e-12).argmax(axis=1)]


def chance_of_reaching(reached: np.ndarray) -> np.ndarray:
    """The probability that one of k tuning points reaches the target, k = 1 .. n, of (n,) truth values.

    >>> chance_of_reaching(np.array([True, False, False])).round(3).tolist()
    [0.333, 0.667, 1.0]
    """
    n, misses = len(reached), int(len(reached) - np.sum(reached))
    return np.array([1 - math.comb(misses, k) / math.comb(n, k) for k in range(1, n + 1)])


def _best_probabilities(n: int) -> np.ndarray:
    """(n, n): for each k the probabilities that the i-th best of n is the best of the k drawn."""
    return np.array([[math.comb(n - i, k - 1) / math.comb(n, k) for i in range(1, n + 1)] for k in range(1, n + 1)])


def _expectation(probabilities, values):
    return float(np.sum(probabilities[probabilities > 0] * values[probabilities > 0]))


class Basin(NamedTuple):
    """The learning rates around the best one that do nearly as well.

    Fields:
      decades: log10(high / low).
      low, high: its ends.
      open: whether it reaches an end of the grid, so that it may be wider.
    """

    decades: float
    low: float
    high: float
    open: bool


def basin(rates: np.ndarray, values: np.ndarray, rises: bool, within: float = 0.1) -> Basin:
    """The interval around the best rate in which the value stays within a tenth of the best value.

    Between the rates of the grid the value is linear in the logarithm of the rate; a value that is infinitely bad ends
    the interval at the last good rate.

    Args:
      rates: (R,), in any order.
      values: (R,), infinite or NaN where runs diverged.
      rises: whether larger is better.
      within: the allowed loss, as a fraction of the best value's size.

    Raises:
      ValueError: no value is finite.

    >>> basin(np.array([0.01, 0.1, 1.0]), np.array([0.8, 1.0, 0.6]), rises=True)
    Basin(decades=0.75, low=0.0316..., high=0.177..., open=False)
    """
    order = np.argsort(rates)
    x, y = np.log10(np.asarray(rates, float)[order]), np.asarray(values, float)[order]
    worse = np.where(np.isfinite(y), -y if rises else y, np.inf)
    best = int(worse.argmin())
    if not np.isfinite(worse[best]):
        raise ValueError("there is no learning rate with a finite value")
    limit = worse[best] + within * abs(worse[best])

    def end(step):
        i = best
        while 0 <= i + step < len(x) and worse[i + step] <= limit:
            i += step
        if not 0 <= i + step < len(x):
            return x[i], True
        if not np.isfinite(worse[i + step]):
            return x[i], False
        return x[i] + (x[i + step] - x[i]) * (limit - worse[i]) / (worse[i + step] - worse[i]), False

    (low, low_open), (high, high_open) = end(-1), end(1)
    return Basin(float(high - low), float(10**low), float(10**high), low_open or high_open)


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile band of a statistic of (S, W, ...), seeds drawn anew within each workload: (low, high).

    statistic: `(R, S, W, ...) -> (R, ...)`, of R resamples at once.

    >>> low, high = bootstrap(np.arange(10.0).reshape(10, 1), lambda v: v.mean((1, 2)))
    >>> bool(low < 4.5 < high)
    True

    Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice, section 4.1.
    """
    values = np.asarray(values)
    rng = np.random.default_rng(seed)
    seeds, strata = values.shape[:2]
    drawn = statistic(values[rng.integers(0, seeds, (resamples, seeds, strata)), np.arange(strata)])  # (R, ...)
    tail = (1 - level) / 2
    # An order statistic and no interpolation: between a number and infinity there is nothing.
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return low, high


class SignTest(NamedTuple):
    """`wins` of `pairs`, ties left out, and the two-sided probability of as uneven a count by chance alone."""

    wins: int
    pairs: int
    ties: int
    p: float


def sign_test(ours: np.ndarray, theirs: np.ndarray) -> SignTest:
    """Whether `ours` is smaller than `theirs`, pair by pair: (S,) times of the same seeds.

    Two infinite times are a tie.

    >>> sign_test(np.array([1, 1, 1, 3]), np.array([2, 2, 2, 3]))
    SignTest(wins=3, pairs=3, ties=1, p=0.25)
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    wins, losses = int((ours < theirs).sum()), int((ours > theirs).sum())
    pairs = wins + losses
    tail = sum(math.comb(pairs, k) for k in range(max(wins, losses), pairs + 1)) / 2**pairs
    return SignTest(wins, pairs, len(ours) - pairs, min(1.0, 2 * tail))
