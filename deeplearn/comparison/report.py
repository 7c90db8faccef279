"""What a comparison leaves behind: tables for reading and for programs, the figures, the page, and every run."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from deeplearn.comparison import figures, page, records, scores, summary, table
from deeplearn.comparison.protocol import Outcome, counting_compilation
from deeplearn.files import replacing

HEADS = {
    "steps_to_target": "steps to target",
    "examples_to_target": "examples to target",
    "seconds_to_target": "seconds to target",
    "compile_seconds": "seconds compiling",
}


def rows(outcome: Outcome) -> list[table.Row]:
    """A row an optimizer, the best first: the soonest at the target, then the best last value."""
    sign = -1 if outcome.goal.rises else 1
    found = (table.row(result.final, result.tuned, outcome.metric, outcome.goal) for result in outcome.results)
    return sorted(found, key=lambda row: (row.seconds_to_target, sign * row.final))


def cells(outcome: Outcome) -> tuple[list[str], list[list[Any]]]:
    """The table that people read: its columns' names, and a list of cells a row, numbers as they are."""
    found = rows(outcome)
    tested = any(np.isfinite(row.test) for row in found)
    metric = outcome.metric
    only_rates = all(list(row.point) == ["learning_rate"] for row in found)
    columns = ["optimizer", "learning rate" if only_rates else "point", f"best {metric}", f"final {metric}", "std"]
    columns += [f"test/{outcome.goal.metric}"] * tested + list(HEADS.values())[:3] + ["reached", "diverged"]
    columns += ["basin"] * any(row.basin for row in found) + ["seconds compiling"]

    def line(row):
        values = [row.optimizer, table.describe(row.point), row.best, row.final, row.spread]
        values += [row.test] * tested + [row.steps_to_target, row.examples_to_target, row.seconds_to_target]
        values += [row.reached, row.diverged]
        return values + [row.basin] * ("basin" in columns) + [row.compile_seconds]

    return columns, [line(row) for row in found]


DIGITS = {"std": 2, "steps to target": 7, "examples to target": 9, "seconds to target": 3, "seconds compiling": 2}


def markdown(outcome: Outcome, title: str) -> str:
    """The table of a workload, the best optimizer first."""
    columns, lines = cells(outcome)
    what, seeds = columns[1], "fresh seeds" if any(result.final.test for result in outcome.results) else "seeds"

    def shown(column, value):
        return value if isinstance(value, str) else table.number(value, DIGITS.get(column, 4))

    text = [
        f"# {title}",
        "",
        f"Each optimizer at the {what} that reaches the target first; medians over {seeds}. A dash: the target was not"
        " reached by half of them.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    text += [f"| {' | '.join(shown(*cell) for cell in zip(columns, line, strict=True))} |" for line in lines]
    if "basin" in columns:
        name = outcome.metric
        text += [
            "",
            f"Basin: the decades of learning rate within which the last {name} is a tenth off the best at most.",
        ]
    notes = paired(outcome)
    if notes:
        text += ["", f"How often {lines[0][0]} reaches the target in fewer steps (two-sided sign test):", ""]
        text += [f"- {note}" for note in notes]
    return "\n".join(text) + "\n"


def paired(outcome: Outcome) -> list[str]:
    """The first optimizer of the table against each other, seed by seed, where they ran again with fresh ones."""
    runs = {result.final.optimizer: result.final for result in outcome.results if result.final.test}
    first, *others = (row.optimizer for row in rows(outcome))
    if first not in runs:
        return []
    steps = {name: table.steps_to_target(sweep, outcome.metric, outcome.goal) for name, sweep in runs.items()}

    def line(other):
        count = min(len(steps[first]), len(steps[other]))
        wins, pairs, ties, p = scores.sign_test(steps[first][:count], steps[other][:count])
        return f"{first} reaches the target before {other}: {wins} of {pairs} seeds, {ties} ties, p = {p:.2g}"

    return [line(other) for other in others if other in runs]


def document(title: str, outcomes: list[Outcome], manifest: dict[str, Any]) -> dict[str, Any]:
    """What the page shows, as plain data; see deeplearn.comparison.page."""
    names = list(dict.fromkeys(result.tuned.optimizer for outcome in outcomes for result in outcome.results))
    looks = {name: figures.look(i) for i, name in enumerate(names)}
    shared = summary.common(outcomes)
    several = len(outcomes) > 1 and shared[0].results
    launches = [manifest, *manifest.get("resumed", [])]
    return {
        "title": title,
        "command": "\n".join(dict.fromkeys(launch.get("command", "") for launch in launches)),
        "manifest": manifest,
        "colours": {name: colour for name, (colour, _) in looks.items()},
        "dashes": {name: dash for name, (_, dash) in looks.items()},
        "workloads": [_workload(outcome) for outcome in outcomes],
        "profiles": {unit: _profiles(shared, unit) for unit in ("seconds", "epochs")} if several else None,
    }


def _workload(outcome: Outcome) -> dict[str, Any]:
    columns, lines = cells(outcome)
    goal, metric = outcome.goal, outcome.metric
    tuned = {result.tuned.optimizer: result.tuned for result in outcome.results}

    def drawn(sweep):
        return {name: sweep.curves[name] for name in figures.LABELS if name in sweep.curves}

    def runs():
        for phase, winner, sweep in records.phases(outcome):
            for i, (point, seed) in enumerate(zip(sweep.point, sweep.seeds, strict=True)):
                yield {
                    "optimizer": sweep.optimizer,
                    "phase": phase,
                    "winner": sweep.points[point] == winner,
                    "hyperparameters": sweep.points[point],
                    "seed": int(seed),
                    "diverged": bool(sweep.diverged[i]),
                    "steps": sweep.steps.tolist(),
                    "epochs": sweep.epochs.tolist(),
                    "seconds": sweep.seconds[i].tolist(),
                    "curves": {name: x[i].tolist() for name, x in drawn(sweep).items()},
                    "test": {name: float(x[i]) for name, x in sweep.test.items()},
                }

    def bands(sweep):
        kept = {name: x[~sweep.diverged] for name, x in drawn(sweep).items()}
        found = {name: table.band(x) for name, x in kept.items() if len(x)}
        return {name: dict(zip(("middle", "low", "high"), map(list, x), strict=True)) for name, x in found.items()}

    def points(tuned):
        for found in table.sensitivity(tuned, metric):
            fields = found._asdict()
            yield {**fields, "learning_rate": fields.pop("rate"), "hyperparameters": fields.pop("point")}

    def budget(tuned):
        found = {key: x.tolist() for key, x in table.budget(tuned, metric, goal)._asdict().items()}
        return {"k": list(range(1, len(tuned.points) + 1)), **found}

    return {
        "name": outcome.name,
        "metric": metric,
        "rises": goal.rises,
        "target": goal.value if np.isfinite(goal.value) else None,
        "columns": columns,
        "rows": lines,
        "notes": paired(outcome),
        "runs": list(runs()),
        "bands": {result.final.optimizer: bands(result.final) for result in outcome.results},
        "sensitivity": {name: list(points(sweep)) for name, sweep in tuned.items()},
        "joined": all(map(table.only_rates, tuned.values())),
        "budget": {name: budget(sweep) for name, sweep in tuned.items()},
        "budget_metric": metric,
    }


def _profiles(outcomes: list[Outcome], unit: str) -> dict[str, Any]:
    found = summary.profiles(outcomes, unit)
    names = [result.final.optimizer for result in outcomes[0].results]
    curves = {key: getattr(found, key) for key in ("rho", "low", "high") if getattr(found, key) is not None}
    by_name = {key: dict(zip(names, x.tolist(), strict=True)) for key, x in curves.items()}
    return {"tau": found.taus.tolist(), **by_name}


def write(
    workdir: Path, title: str, outcomes: list[Outcome], manifest: dict[str, Any], count_compile: bool = False
) -> list[Path]:
    """All files of a comparison; returns the paths of those to look at first.

    One workload's lie in `workdir`, those of several in a directory each, and what sums them up in `workdir`.
    `count_compile`: whether a run's seconds are to include its share of the compilation.
    """
    if count_compile:
        outcomes = [o._replace(results=[counting_compilation(result) for result in o.results]) for o in outcomes]
    paths = [workdir / "report.html"]
    page.write(paths[0], document(title, outcomes, manifest))
    shared = summary.common(outcomes)
    if len(outcomes) > 1 and shared[0].results:
        with replacing(workdir / "summary.md") as temporary:
            temporary.write_text(summary.markdown(shared))
        paths += [workdir / "summary.md", *figures.write_profiles(workdir, shared)]
    for outcome in outcomes:
        directory = workdir / outcome.name if len(outcomes) > 1 else workdir
        directory.mkdir(exist_ok=True)
        heading = f"{outcome.name}: {title.rpartition(': ')[2]}" if len(outcomes) > 1 else title
        with replacing(directory / "table.md") as temporary:
            temporary.write_text(markdown(outcome, heading))
        with replacing(directory / "table.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table.Row._fields)
            writer.writerows(row._replace(point=table.describe(row.point)) for row in rows(outcome))
        every = records.columns(outcome)
        records.write_csv(directory / "curves.csv", every)
        records.write_parquet(directory / "curves.parquet", every)
        records.write_events(workdir / "tensorboard" / outcome.name, outcome)
        paths += [directory / "table.md", *figures.write(directory, outcome)]
    return paths
