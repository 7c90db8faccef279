"""The finished runs of a comparison, a file each: what is there is never trained again."""

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplearn.comparison.sweep import Sweep
from deeplearn.errors import UserError
from deeplearn.files import replacing, writing

Run = tuple[dict[str, float], int]


def path(directory: Path, optimizer: str, phase: str, run: Run) -> Path:
    """The file of a run: hyperparameters and seed, of "tune" or "final".

    >>> path(Path("runs"), "adam(b1=0.8)", "tune", ({"learning_rate": 0.1}, 3)).as_posix()
    'runs/adam-b1-0.8/tune-...-3.json'
    """
    hyperparameters, seed = run
    return directory / folder(optimizer) / f"{phase}-{identity(optimizer, hyperparameters)}-{seed}.json"


def identity(optimizer: str, hyperparameters: dict[str, float]) -> str:
    """Ten letters that no two points of an optimizer share."""
    return hashlib.sha256(json.dumps([optimizer, hyperparameters]).encode()).hexdigest()[:10]


def folder(optimizer: str) -> str:
    """The name of an optimizer's directory.

    >>> folder("adam(b1=0.8)")
    'adam-b1-0.8'
    """
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in optimizer).strip("-")


def missing(directory: Path, optimizer: str, phase: str, runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that are not finished."""
    return [run for run in runs if not path(directory, optimizer, phase, run).exists()]


def write(directory: Path, phase: str, sweep: Sweep) -> None:
    """Store every run of a sweep; UserError if that cannot be done.

    Of several processes, which must all see the directory, the first writes, and the others wait for it.
    """
    if jax.process_index() == 0:
        _write(directory, phase, sweep)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("runs written")


def _write(directory: Path, phase: str, sweep: Sweep) -> None:
    for i, (point, seed) in enumerate(zip(sweep.point, sweep.seeds, strict=True)):
        run = sweep.points[point], int(seed)
        content = {
            "optimizer": sweep.optimizer,
            "hyperparameters": run[0],
            "seed": run[1],
            "phase": phase,
            "steps": sweep.steps.tolist(),
            "examples": sweep.examples.tolist(),
            "epochs": sweep.epochs.tolist(),
            "seconds": sweep.seconds[i].tolist(),
            "compile_seconds": float(sweep.compile_seconds[i]),
            "curves": {name: _numbers(x[i]) for name, x in sweep.curves.items()},
            "test": {name: _numbers(x[i]) for name, x in sweep.test.items()},
        }
        file = path(directory, sweep.optimizer, phase, run)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"run": content, "checksum": _checksum(content)}) + "\n")


def read(directory: Path, optimizer: str, phase: str, runs: Sequence[Run]) -> Sweep:
    """The finished runs as one Sweep, in the order of `runs`.

    Raises UserError for a file that is damaged or absent.
    """
    found = [_read(path(directory, optimizer, phase, run)) for run in runs]
    points = list({tuple(point.items()): point for point, _ in runs}.values())
    array = lambda values: np.array(values, float)  # noqa: E731  # None, not a finite number, becomes NaN
    return Sweep(
        optimizer=optimizer,
        points=tuple(points),
        point=np.array([points.index(point) for point, _ in runs]),
        seeds=np.array([seed for _, seed in runs]),
        steps=np.array(found[0]["steps"]),
        examples=np.array(found[0]["examples"]),
        epochs=np.array(found[0]["epochs"]),
        seconds=array([run["seconds"] for run in found]),
        curves={name: array([run["curves"][name] for run in found]) for name in found[0]["curves"]},
        test={name: array([run["test"][name] for run in found]) for name in found[0]["test"]},
        compile_seconds=array([run["compile_seconds"] for run in found]),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        whole = json.loads(file.read_text())
        if whole["checksum"] == _checksum(whole["run"]):
            return whole["run"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file} is damaged; delete it and run the same command again, which trains that run alone")


def _numbers(values: np.ndarray) -> Any:
    """As JSON has it, null for what is not finite."""
    if np.ndim(values):
        return [_numbers(value) for value in values]
    return float(values) if math.isfinite(values) else None


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
