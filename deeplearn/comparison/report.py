"""What a comparison leaves behind: tables for reading and for programs, and the pictures."""

import csv
import math

import numpy as np

from deeplearn.comparison import table
from deeplearn.comparison.sweep import Sweep
from deeplearn.pictures.style import COLORS, figure, save

LABELS = {
    "loss": "training loss",
    "validation/loss": "validation loss",
    "validation/accuracy": "validation accuracy",
}


def number(value: float, digits: int = 4) -> str:
    """A number as a table shows it; a dash for infinity."""
    return f"{value:.{digits}g}" if math.isfinite(value) else "-"


def markdown(rows: list[table.Row], title: str, metric: str) -> str:
    """The table of a comparison, the best optimizer first."""
    lines = [
        f"# {title}",
        "",
        f"Each optimizer at its best learning rate by the last {metric}; medians over seeds. A dash: the target was not"
        " reached by half of the seeds.",
        "",
        f"| optimizer | learning rate | best {metric} | final {metric} | std | steps to target | seconds to target |"
        " reached | diverged |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.optimizer,
            number(row.learning_rate, 3),
            number(row.best),
            number(row.final),
            number(row.spread, 2),
            number(row.steps_to_target, 6),
            number(row.seconds_to_target, 3),
            row.reached,
            row.diverged,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_curves(path, sweeps: list[Sweep]) -> None:
    """Every run's curves as CSV, one line an evaluation of a run."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        names = list(sweeps[0].curves)
        writer.writerow(["optimizer", "learning_rate", "seed", "step", "epoch", "seconds", *names])
        for sweep in sweeps:
            for run, (rate, seed) in enumerate(zip(sweep.learning_rates, sweep.seeds, strict=True)):
                for at in range(len(sweep.steps)):
                    values = [float(sweep.curves[name][run, at]) for name in names]
                    place = [int(sweep.steps[at]), float(sweep.epochs[at]), float(sweep.seconds[at])]
                    writer.writerow([sweep.optimizer, float(rate), int(seed), *place, *values])


def draw_curves(path, sweeps: list[Sweep], rows: list[table.Row], goal, metric: str) -> None:
    """The curves of each optimizer at its best learning rate: the median over seeds, the band from least to most."""
    names = [name for name in LABELS if name in sweeps[0].curves]
    rates = {row.optimizer: row.learning_rate for row in rows}
    fig = figure(4.2 * len(names), 3.9)
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    for i, sweep in enumerate(sweeps):
        runs = sweep.learning_rates == rates[sweep.optimizer]
        for ax, name in zip(axes, names, strict=True):
            values = np.where(np.isfinite(sweep.curves[name][runs]), sweep.curves[name][runs], np.nan)  # (S, E)
            color, dash = COLORS[i % len(COLORS)], ("-", "--", ":", "-.")[i // len(COLORS) % 4]
            label = f"{sweep.optimizer}, {number(rates[sweep.optimizer], 2)}"
            ax.plot(sweep.epochs, np.median(values, axis=0), dash, color=color, label=label, linewidth=1.6)
            ax.fill_between(sweep.epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
    for ax, name in zip(axes, names, strict=True):
        ax.set(xlabel="epochs", title=LABELS[name])
        if "loss" in name:
            ax.set_yscale("log")
        else:  # the interesting part of an accuracy is near its top
            finals = np.concatenate([sweep.curves[name][:, -1] for sweep in sweeps])
            top = np.nanmax(finals)
            ax.set_ylim(max(0.0, top - 0.25), min(1.0, top + 0.01))
        if name == metric and math.isfinite(goal.value):
            ax.axhline(goal.value, color="0.4", linewidth=0.8, linestyle=(0, (4, 3)))
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    save(fig, path)


def draw_sensitivity(path, sweeps: list[Sweep], goal, metric: str) -> None:
    """The last value against the learning rate, every optimizer: how wide its basin is, and where it falls off."""
    fig = figure(7.5, 4.4)
    ax = fig.subplots()
    for i, sweep in enumerate(sweeps):
        values = np.where(sweep.diverged, np.nan, sweep.curves[metric][:, -1])
        rates = np.unique(sweep.learning_rates)
        groups = [values[sweep.learning_rates == rate] for rate in rates]
        color, dash = COLORS[i % len(COLORS)], ("-", "--", ":", "-.")[i // len(COLORS) % 4]
        whole = np.array([np.isfinite(group).all() for group in groups])
        middle = np.array([np.median(group) for group in groups])  # NaN where a seed diverged
        ax.plot(rates, middle, f"o{dash}", color=color, label=sweep.optimizer, markersize=4, linewidth=1.4)
        low, high = (np.array([f(group) for group in groups]) for f in (np.min, np.max))
        ax.fill_between(rates, low, high, where=whole, color=color, alpha=0.15, linewidth=0)
        fallen = [rate for rate, ok in zip(rates, whole, strict=True) if not ok]
        ax.plot(fallen, [0.02 + 0.02 * i] * len(fallen), "x", color=color, transform=ax.get_xaxis_transform(), markersize=5)
    ax.set(xscale="log", xlabel="learning rate (x: a seed diverged)", ylabel=f"final {LABELS.get(metric, metric)}")
    ax.legend(frameon=False, ncols=2)
    save(fig, path)


def write(workdir, title: str, sweeps: list[Sweep], goal, metric: str) -> list[str]:
    """All files of a comparison; returns their paths."""
    sign = -1 if goal.rises else 1
    rows = sorted((table.row(sweep, metric, goal) for sweep in sweeps), key=lambda row: (row.seconds_to_target, sign * row.final))
    paths = [workdir / name for name in ("table.md", "table.csv", "curves.csv", "curves.png", "learning_rates.png")]
    paths[0].write_text(markdown(rows, title, metric))
    with open(paths[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.Row._fields)
        writer.writerows(rows)
    write_curves(paths[2], sweeps)
    draw_curves(paths[3], sweeps, rows, goal, metric)
    draw_sensitivity(paths[4], sweeps, goal, metric)
    return [str(path) for path in paths]
