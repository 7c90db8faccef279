"""Several workloads together: performance profiles, their scores, and speed-ups."""

from typing import NamedTuple

import numpy as np

from deeplearn.comparison import scores, table
from deeplearn.comparison.protocol import Outcome

R_MAX = 4.0  # how many times the fastest one's time still counts


class Profiles(NamedTuple):
    """Performance profiles: rho (S, T) over taus (T,), with a bootstrap band over seeds; None for a single seed."""

    taus: np.ndarray
    rho: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def common(outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes with those optimizers alone that all of them have, in one order: only they can be ranked."""
    found = [{result.tuned.optimizer: result for result in outcome.results} for outcome in outcomes]
    names = [name for name in found[0] if all(name in results for results in found)]
    return [
        outcome._replace(results=[results[name] for name in names])
        for outcome, results in zip(outcomes, found, strict=True)
    ]


def run_times(outcomes: list[Outcome], unit: str) -> np.ndarray:
    """(seeds, W, S): the "epochs" or "seconds" to the target of each final run, infinite where it is not reached.

    The runs of one workload and one optimizer, of which there may be fewer, are repeated to as many as there are most.
    """

    def each(sweep, outcome):
        first = table.first_reached(sweep, outcome.metric, outcome.goal)  # (S,)
        clock = sweep.seconds if unit == "seconds" else np.tile(sweep.epochs, (len(first), 1))
        clock = np.append(clock, np.full((len(first), 1), np.inf), axis=1)
        return clock[np.arange(len(first)), first]

    found = [[each(result.final, o) for result in o.results] for o in outcomes]
    most = max(len(times) for row in found for times in row)
    return np.moveaxis([[np.resize(times, most) for times in row] for row in found], -1, 0)


def times(outcomes: list[Outcome], unit: str) -> np.ndarray:
    """(S, W): the median over seeds of the "epochs" or "seconds" to the target, infinite where half don't reach it."""
    return np.median(run_times(outcomes, unit), axis=0).T


def profiles(outcomes: list[Outcome], unit: str) -> Profiles:
    """The profiles of all optimizers, their bands from seeds drawn anew within each workload."""
    taus = np.geomspace(1, R_MAX, 200)

    def rho(drawn):  # (R, seeds, W, S)
        middle = np.median(drawn, axis=1)  # (R, W, S)
        return np.stack([scores.performance_profile(scores.performance_ratios(t.T), taus) for t in middle])

    found = run_times(outcomes, unit)
    low, high = scores.bootstrap(found, rho, resamples=500) if len(found) > 1 else (None, None)
    return Profiles(taus, rho(found[None])[0], low, high)


def markdown(outcomes: list[Outcome], reference: int = 0) -> str:
    """The table of all workloads, the best score in seconds first."""
    names = [result.final.optimizer for result in outcomes[0].results]
    epochs, seconds = times(outcomes, "epochs"), times(outcomes, "seconds")
    by_epochs, by_seconds = (scores.profile_score(scores.performance_ratios(t), R_MAX) for t in (epochs, seconds))
    lines = [
        f"# {len(names)} optimizers on {len(outcomes)} workloads",
        "",
        f"The score is the area under the performance profile: the mean, over ratios from 1 to {R_MAX:g}, of the share"
        " of workloads on which an optimizer reaches the target within that many times the fastest one's time. In"
        " brackets after the speed-up (the geometric mean where both reach the target): the workloads on which both, it"
        f" alone and {names[reference]} alone do. A dash: the target was not reached by half of the seeds.",
        "",
        f"| optimizer | score, seconds | score, epochs | speed-up over {names[reference]} |"
        + "".join(f" {o.name}, epochs |" for o in outcomes),
        "|---|---|---|---|" + "---|" * len(outcomes),
    ]
    for i in sorted(range(len(names)), key=lambda i: (-by_seconds[i], -by_epochs[i])):
        factor, both, ours, theirs, _ = scores.speed_up(seconds[i], seconds[reference])
        cells = [names[i], f"{by_seconds[i]:.2f}", f"{by_epochs[i]:.2f}"]
        cells += [f"{table.number(factor, 3)} ({both}, {ours}, {theirs})", *(table.number(t, 3) for t in epochs[i])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
