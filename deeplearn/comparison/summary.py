"""Several workloads together: performance profiles, their scores, and speed-ups."""

from typing import NamedTuple

import numpy as np

from deeplearn.comparison import report, scores, table
from deeplearn.comparison.protocol import Result
from deeplearn.pictures import style

R_MAX = 4.0  # how many times the fastest one's time still counts


class Workload(NamedTuple):
    """The results on one workload, in the order of the optimizers, and the target that decides."""

    name: str
    results: list[Result]
    goal: object
    metric: str


def times(workloads: list[Workload], unit: str) -> np.ndarray:
    """(S, W): the median over seeds of the "epochs" or "seconds" to the target, infinite where half don't reach it."""

    def median(sweep, workload):
        first = table.first_reached(sweep, workload.metric, workload.goal)  # (S,)
        clock = sweep.seconds if unit == "seconds" else np.tile(sweep.epochs, (len(first), 1))
        clock = np.append(clock, np.full((len(first), 1), np.inf), axis=1)
        return np.median(clock[np.arange(len(first)), first])

    return np.array([[median(result.final, w) for result in w.results] for w in workloads]).T


def markdown(workloads: list[Workload], reference: int = 0) -> str:
    """The table of all workloads, the best score in seconds first."""
    names = [result.final.optimizer for result in workloads[0].results]
    epochs, seconds = times(workloads, "epochs"), times(workloads, "seconds")
    by_epochs, by_seconds = (scores.profile_score(scores.performance_ratios(t), R_MAX) for t in (epochs, seconds))
    lines = [
        f"# {len(names)} optimizers on {len(workloads)} workloads",
        "",
        f"The score is the area under the performance profile: the mean, over ratios from 1 to {R_MAX:g}, of the share"
        " of workloads on which an optimizer reaches the target within that many times the fastest one's time. In"
        " brackets after the speed-up (the geometric mean where both reach the target): the workloads on which both, it"
        f" alone and {names[reference]} alone do. A dash: the target was not reached by half of the seeds.",
        "",
        f"| optimizer | score, seconds | score, epochs | speed-up over {names[reference]} |"
        + "".join(f" {w.name}, epochs |" for w in workloads),
        "|---|---|---|---|" + "---|" * len(workloads),
    ]
    for i in sorted(range(len(names)), key=lambda i: (-by_seconds[i], -by_epochs[i])):
        factor, both, ours, theirs, _ = scores.speed_up(seconds[i], seconds[reference])
        cells = [names[i], f"{by_seconds[i]:.2f}", f"{by_epochs[i]:.2f}"]
        cells += [f"{report.number(factor, 3)} ({both}, {ours}, {theirs})", *(report.number(t, 3) for t in epochs[i])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_profiles(path, workloads: list[Workload]) -> None:
    """The performance profiles, in seconds and in epochs."""
    taus = np.geomspace(1, R_MAX, 400)
    with style.picture(path, 7.2, 3.6) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, unit in zip(panels, ("seconds", "epochs"), strict=True):
            profiles = scores.performance_profile(scores.performance_ratios(times(workloads, unit)), taus)
            for i, (result, profile) in enumerate(zip(workloads[0].results, profiles, strict=True)):
                look = {**report.line_style(i), "drawstyle": "steps-post"}
                axes.plot(taus, profile, label=result.final.optimizer, **look)
            axes.set(xlabel=f"times the fastest, {unit}", xscale="log", ylim=(-0.03, 1.03), xticks=[1, 2, 4])
            axes.set_xticks([], minor=True)
            axes.set_xticklabels(["1", "2", "4"])
        panels[0].set(ylabel="fraction of workloads", title="targets reached")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def write(workdir, workloads: list[Workload]) -> list[str]:
    """The summary's files; returns their paths."""
    paths = [workdir / "summary.md", workdir / "profiles.png"]
    paths[0].write_text(markdown(workloads))
    draw_profiles(paths[1], workloads)
    return [str(path) for path in paths]
