"""What a comparison leaves behind: tables for reading and for programs, and the pictures."""

import csv
import math

import numpy as np

from deeplearn.comparison import scores, table
from deeplearn.comparison.protocol import Result
from deeplearn.pictures import style

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
    tested = any(math.isfinite(row.test) for row in rows)
    test, seeds = (f"test/{metric.split('/')[1]} | ", "fresh seeds") if tested else ("", "seeds")
    what = "learning rate" if all(list(row.point) == ["learning_rate"] for row in rows) else "point"
    lines = [
        f"# {title}",
        "",
        f"Each optimizer at the {what} that reaches the target first; medians over {seeds}. A dash: the target was not"
        " reached by half of them.",
        "",
        f"| optimizer | {what} | best {metric} | final {metric} | std | {test}steps to target | seconds to target |"
        " reached | diverged | basin |",
        "|---|---|---|---|---|---|---|---|---|" + ("---|---|" if tested else "---|"),
    ]
    for row in rows:
        cells = (
            row.optimizer,
            table.describe(row.point),
            number(row.best),
            number(row.final),
            number(row.spread, 2),
            *([number(row.test)] if tested else []),
            number(row.steps_to_target, 6),
            number(row.seconds_to_target, 3),
            row.reached,
            row.diverged,
            row.basin,
        )
        lines.append(f"| {' | '.join(cells)} |")
    if any(row.basin for row in rows):
        lines += [
            "",
            f"Basin: the decades of learning rate within which the last {metric} is a tenth off the best at most.",
        ]
    return "\n".join(lines) + "\n"


def paired(rows: list[table.Row], results: list[Result], goal, metric: str) -> str:
    """The first optimizer of the table against each other, seed by seed, where they were run again with fresh ones."""
    runs = {result.final.optimizer: result.final for result in results if result.final.test}
    if rows[0].optimizer not in runs:
        return ""
    first, *others = (table.steps_to_target(runs[row.optimizer], metric, goal) for row in rows)
    lines = [f"\nHow often {rows[0].optimizer} reaches the target in fewer steps than another (two-sided sign test):\n"]
    for row, steps in zip(rows[1:], others, strict=True):
        wins, pairs, ties, p = scores.sign_test(first, steps)
        lines.append(f"- {row.optimizer}: {wins} of {pairs} seeds, {ties} ties, p = {p:.2g}")
    return "\n".join(lines) + "\n"


def write_curves(path, results: list[Result]) -> None:
    """Every run's curves as CSV, one line an evaluation of a run."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        names = list(results[0].tuned.curves)
        searched = list(dict.fromkeys(key for result in results for key in result.winner))
        writer.writerow(["optimizer", *searched, "seed", "phase", "step", "epoch", "seconds", *names])
        for result in results:
            phases = {"tune": result.tuned} | ({"final": result.final} if result.final.test else {})
            for phase, sweep in phases.items():
                for run, (point, seed) in enumerate(zip(sweep.point, sweep.seeds, strict=True)):
                    about = [sweep.optimizer, *(sweep.points[point].get(key, "") for key in searched), int(seed), phase]
                    for at in range(len(sweep.steps)):
                        place = [int(sweep.steps[at]), float(sweep.epochs[at]), float(sweep.seconds[run, at])]
                        writer.writerow([*about, *place, *(float(sweep.curves[name][run, at]) for name in names)])


def line_style(number: int) -> dict:
    """The look of the n-th optimizer: a colour of its own, then the same colours dashed, dotted, dash-dotted."""
    dashes = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
    colours = style.COLOURS
    return {"color": colours[number % len(colours)], "linestyle": dashes[number // len(colours) % len(dashes)]}


def draw_curves(path, results: list[Result], goal, metric: str) -> None:
    """The curves of each optimizer at its best point: the median over seeds, the band from least to most."""
    names = [name for name in LABELS if name in results[0].final.curves]
    with style.picture(path, 3.6 * len(names), 4.0) as figure:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            axes.set(xlabel="epochs", title=LABELS[name])
            if "loss" in name:
                axes.set_yscale("log")
            lowest = []
            for i, (_, winner, sweep) in enumerate(results):
                values = sweep.curves[name][~sweep.diverged]  # (S, E)
                if not len(values):
                    continue
                middle, look = np.median(values, axis=0), line_style(i)
                rate = winner.get("learning_rate")
                label = f"{sweep.optimizer} ({number(rate, 2)})" if rate else sweep.optimizer
                axes.plot(sweep.epochs, middle, label=label, **look)
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(sweep.epochs, low, high, color=look["color"], alpha=0.12, linewidth=0)
                lowest.append(middle[len(middle) // 4])
            if "accuracy" in name and lowest:  # what tells them apart is near the top
                axes.set_ylim(max(0.0, min(lowest)), 1.005)
            if name == metric and math.isfinite(goal.value):
                axes.axhline(goal.value, color=style.FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)


def draw_sensitivity(path, results: list[Result], goal, metric: str) -> None:
    """The last value against the learning rate, every optimizer: how wide its basin is, and where it falls off.

    Where other hyperparameters vary too, points are not joined.
    """
    with style.picture(path, style.WIDTH, 4.4) as figure:
        axes = figure.subplots()
        tops = []
        for i, (sweep, _, _) in enumerate(results):
            if "learning_rate" not in sweep.points[0]:
                continue
            values = np.where(sweep.diverged, np.nan, sweep.curves[metric][:, -1])
            rates = np.array([point["learning_rate"] for point in sweep.points])
            order = np.argsort(rates)
            rates, groups = rates[order], [values[sweep.point == at] for at in order]
            whole = np.array([np.isfinite(group).all() for group in groups])
            look = line_style(i) if len(sweep.points[0]) == 1 else {**line_style(i), "linestyle": "none"}
            middle = np.array([np.median(group) for group in groups])  # NaN where a seed diverged
            axes.plot(rates, middle, marker="o", markersize=4, label=sweep.optimizer, **look)
            low, high = (np.array([f(group) for group in groups]) for f in (np.min, np.max))
            if len(sweep.points[0]) == 1:
                axes.fill_between(rates, low, high, where=whole, color=look["color"], alpha=0.12, linewidth=0)
            fallen = rates[~whole]
            height = np.full(len(fallen), 0.02 + 0.02 * i)
            axes.plot(fallen, height, "x", color=look["color"], transform=axes.get_xaxis_transform(), markersize=5)
            tops.extend(middle[np.isfinite(middle)])
        axes.set(xscale="log", xlabel="learning rate (x: a seed diverged)", ylabel=f"last {LABELS.get(metric, metric)}")
        if not goal.rises:
            axes.set_yscale("log")
        axes.legend(ncols=2)


def write(workdir, title: str, results: list[Result], goal, metric: str) -> list[str]:
    """All files of a comparison; returns their paths."""
    sign = -1 if goal.rises else 1
    rows = sorted(
        (table.row(result.final, result.tuned, metric, goal) for result in results),
        key=lambda row: (row.seconds_to_target, sign * row.final),
    )
    paths = [workdir / name for name in ("table.md", "table.csv", "curves.csv", "curves.png", "learning_rates.png")]
    paths[0].write_text(markdown(rows, title, metric) + paired(rows, results, goal, metric))
    with open(paths[1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table.Row._fields)
        writer.writerows(row._replace(point=table.describe(row.point)) for row in rows)
    write_curves(paths[2], results)
    draw_curves(paths[3], results, goal, metric)
    draw_sensitivity(paths[4], results, goal, metric)
    return [str(path) for path in paths]
