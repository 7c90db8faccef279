"""The figures of a comparison, as PNG to look at and as PDF for a paper."""

import math
from pathlib import Path

import numpy as np

from deeplearn.comparison import summary, table
from deeplearn.comparison.protocol import Outcome
from deeplearn.files import replacing
from deeplearn.pictures import style

LABELS = {
    "loss": "training loss",
    "validation/loss": "validation loss",
    "validation/accuracy": "validation accuracy",
}
DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 2, 1, 2))}


def look(number: int) -> tuple[str, str]:
    """Colour and dash of the n-th optimizer: a colour of its own, then the same colours dashed, dotted, dash-dotted.

    >>> look(0)[1], look(6)[1]
    ('solid', 'dash')
    """
    return style.COLOURS[number % len(style.COLOURS)], list(DASHES)[number // len(style.COLOURS) % len(DASHES)]


def line_style(number: int) -> dict:
    """The same for matplotlib."""
    colour, dash = look(number)
    return {"color": colour, "linestyle": DASHES[dash]}


def logarithmic(name: str) -> bool:
    """Whether a metric is drawn in log: what falls towards 0 is."""
    return "loss" in name or "error" in name


def set_log(axes) -> None:
    """A logarithmic y axis, for what is drawn already; within a decade its numbers are plain ones."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:.3g}")


def under(figure, axes) -> None:
    """One legend below all panels, of what `axes` holds."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def curves(figure, outcome: Outcome) -> None:
    """Each optimizer at its best point: the median over seeds and its bootstrap band."""
    results, goal = outcome.results, outcome.goal
    names = [name for name in LABELS if name in results[0].final.curves]
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        axes.set(xlabel="epochs", title=LABELS[name])
        early = []
        for i, (_, winner, sweep) in enumerate(results):
            values = sweep.curves[name][~sweep.diverged]  # (S, E)
            if not len(values):
                continue
            middle, low, high = table.band(values)
            rate = winner.get("learning_rate")
            label = f"{sweep.optimizer} ({table.number(rate, 2)})" if rate else sweep.optimizer
            axes.plot(sweep.epochs, middle, label=label, **line_style(i))
            axes.fill_between(sweep.epochs, low, high, color=look(i)[0], alpha=0.12, linewidth=0)
            early.append(middle[len(middle) // 4])
        if logarithmic(name):
            set_log(axes)
        if "accuracy" in name and early:  # what tells them apart is near the top
            top = max(line.get_ydata().max() for line in axes.lines)
            axes.set_ylim(max(0.0, min(min(early), 0.9 * top)), 1.02 * top)
        if name == outcome.metric and math.isfinite(goal.value):
            axes.axhline(goal.value, color=style.FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
    under(figure, panels[0])


def sensitivity(figure, outcome: Outcome) -> None:
    """The last value against the learning rate, every optimizer: how wide its basin is, and where it falls off.

    Where other hyperparameters vary too, points are not joined.
    """
    axes = figure.subplots()
    for i, result in enumerate(outcome.results):
        found = table.sensitivity(result.tuned, outcome.metric)
        if not found:
            continue
        joined = table.only_rates(result.tuned)
        style_of = line_style(i) if joined else {**line_style(i), "linestyle": "none"}
        rates = np.array([point.rate for point in found])
        middle, low, high = (np.array([getattr(point, key) for point in found]) for key in ("middle", "low", "high"))
        axes.plot(rates, middle, marker="o", markersize=4, label=result.tuned.optimizer, **style_of)
        if joined:
            axes.fill_between(rates, low, high, color=look(i)[0], alpha=0.12, linewidth=0)
        fallen = rates[[point.diverged > 0 for point in found]]
        height = np.full(len(fallen), 0.02 + 0.02 * i)
        axes.plot(fallen, height, "x", color=look(i)[0], transform=axes.get_xaxis_transform(), markersize=5)
    label = LABELS.get(outcome.metric, outcome.metric)
    axes.set(xscale="log", xlabel="learning rate (x: a seed diverged)", ylabel=f"last {label}")
    if logarithmic(outcome.metric):
        set_log(axes)
    axes.legend(ncols=2)


def budget(figure, outcome: Outcome) -> None:
    """What a smaller search would have found: the expected best value of k points, and their chance of the target."""
    panels = figure.subplots(1, 2)
    for i, result in enumerate(outcome.results):
        found = table.budget(result.tuned, outcome.metric, outcome.goal)
        k = np.arange(1, len(found.expected) + 1)
        finite = np.where(np.isfinite(found.expected), found.expected, np.nan)
        panels[0].plot(k, finite, marker="o", markersize=3, label=result.tuned.optimizer, **line_style(i))
        panels[1].plot(k, found.chance, marker="o", markersize=3, **line_style(i))
    label = LABELS.get(outcome.metric, outcome.metric)
    panels[0].set(xlabel="points tried", title=f"best last {label}, expected")
    panels[1].set(xlabel="points tried", title="chance of reaching the target", ylim=(-0.03, 1.03))
    if logarithmic(outcome.metric):
        set_log(panels[0])
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
    under(figure, panels[0])


def profiles(figure, outcomes: list[Outcome]) -> None:
    """Performance profiles, in seconds and in epochs, with bootstrap bands over seeds where they can be told apart."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit in zip(panels, ("seconds", "epochs"), strict=True):
        found = summary.profiles(outcomes, unit)
        for i, result in enumerate(outcomes[0].results):
            label = result.final.optimizer
            axes.plot(found.taus, found.rho[i], label=label, drawstyle="steps-post", **line_style(i))
            if found.low is not None and len(outcomes[0].results) <= 4:
                band = {"color": look(i)[0], "alpha": 0.08, "linewidth": 0, "step": "post"}
                axes.fill_between(found.taus, found.low[i], found.high[i], **band)
        axes.set(xlabel=f"times the fastest, {unit}", xscale="log", ylim=(-0.03, 1.03))
        axes.set_xticks([1, 2, 4], ["1", "2", "4"])
        axes.set_xticks([], minor=True)
    panels[0].set(ylabel="fraction of workloads", title="targets reached")
    under(figure, panels[0])


def write(directory: Path, outcome: Outcome) -> list[Path]:
    """The figures of one workload; returns the PNGs' paths, beside which the PDFs lie."""
    legend = 0.2 * math.ceil(len(outcome.results) / 4)
    panels = sum(name in outcome.results[0].final.curves for name in LABELS)
    return [
        draw(directory / "curves", 3.6 * panels, 3.2 + legend, curves, outcome),
        draw(directory / "learning_rates", style.WIDTH, 4.4, sensitivity, outcome),
        draw(directory / "budget", 7.2, 3.0 + legend, budget, outcome),
    ]


def write_profiles(directory: Path, outcomes: list[Outcome]) -> list[Path]:
    """The performance profiles of several workloads."""
    height = 3.0 + 0.2 * math.ceil(len(outcomes[0].results) / 4)
    return [draw(directory / "profiles", 7.2, height, profiles, outcomes)]


def draw(stem: Path, width: float, height: float, function, what) -> Path:
    """`function(figure, what)` as `stem`.png and `stem`.pdf; returns the first."""
    path = stem.with_suffix(".png")
    with style.picture(path, width, height) as figure, replacing(stem.with_suffix(".pdf")) as paper:
        function(figure, what)
        figure.savefig(paper)
    return path
