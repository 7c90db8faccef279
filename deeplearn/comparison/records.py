"""Every run for other programs: CSV, Parquet and TensorBoard."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deeplearn.comparison import store, table
from deeplearn.comparison.protocol import Outcome
from deeplearn.comparison.sweep import Sweep
from deeplearn.files import replacing, writing
from deeplearn.training import logs


def phases(outcome: Outcome) -> Iterator[tuple[str, dict[str, float], Sweep]]:
    """Each sweep of a workload with "tune" or "final" and the optimizer's winner; without reruns there is no final."""
    for result in outcome.results:
        yield "tune", result.winner, result.tuned
        if result.final.test:
            yield "final", result.winner, result.final


def columns(outcome: Outcome) -> dict[str, list[Any]]:
    """One row an evaluation of a run: what the run is, where it is, and all its metrics; None for what is not its."""
    sweeps = list(phases(outcome))
    names = list(dict.fromkeys(name for _, _, sweep in sweeps for name in sweep.curves))
    searched = list(dict.fromkeys(key for _, _, sweep in sweeps for point in sweep.points for key in point))
    about = ["workload", "optimizer", *searched, "seed", "phase", "diverged"]
    rows = {key: [] for key in [*about, "step", "examples", "epoch", "seconds", *names]}
    for phase, _, sweep in sweeps:
        for run, (point, seed) in enumerate(zip(sweep.point, sweep.seeds, strict=True)):
            chosen = [sweep.points[point].get(key) for key in searched]
            what = [outcome.name, sweep.optimizer, *chosen, int(seed), phase, bool(sweep.diverged[run])]
            for at in range(len(sweep.steps)):
                place = [int(sweep.steps[at]), int(sweep.examples[at])]
                place += [float(sweep.epochs[at]), float(sweep.seconds[run, at])]
                values = [float(sweep.curves[name][run, at]) if name in sweep.curves else None for name in names]
                for column, value in zip(rows.values(), [*what, *place, *values], strict=True):
                    column.append(value)
    return rows


def write_csv(path: Path, rows: dict[str, list[Any]]) -> None:
    """Columns as CSV, an empty cell for None."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows(zip(*rows.values(), strict=True))


def write_parquet(path: Path, rows: dict[str, list[Any]]) -> None:
    """Columns as Parquet, with types."""
    import pyarrow
    from pyarrow import parquet

    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(rows), temporary)


def write_events(directory: Path, outcome: Outcome) -> None:
    """A TensorBoard directory a run: `directory`/OPTIMIZER/POINT/PHASE-SEED, its curves over steps; anew each time."""
    with writing(directory):
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
    for phase, _, sweep in phases(outcome):
        for run, (point, seed) in enumerate(zip(sweep.point, sweep.seeds, strict=True)):
            chosen = sweep.points[point]  # described in three digits, which two points may have in common
            name = f"{table.describe(chosen).replace(', ', ',')}-{store.identity(sweep.optimizer, chosen)[:4]}"
            place = directory / store.folder(sweep.optimizer) / name / f"{phase}-{seed}"
            with writing(place):
                place.mkdir(parents=True)
            events = logs.open_events(place)
            for at, step in enumerate(sweep.steps):
                values = {key: float(x[run, at]) for key, x in sweep.curves.items() if np.isfinite(x[run, at])}
                events.write(int(step), values)
            events.close()
