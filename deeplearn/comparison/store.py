"""The finished runs of a comparison, a file each: they are never trained again."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deeplearn import strict_json
from deeplearn.comparison import checked, plans
from deeplearn.comparison.names import Run, folder, identity, path
from deeplearn.comparison.sweep import Sweep, distinct
from deeplearn.errors import UserError

__all__ = ["Run", "folder", "identity", "missing", "path", "read", "records", "stack", "write"]


def missing(directory: Path, optimizer: str, phase: str, runs: Sequence[Run]) -> list[Run]:
    """Those of the runs that are not finished.

    Args:
      directory: of the workload.
      optimizer, phase: of the runs, see `names.path`.
      runs: hyperparameters and seed each.
    """

    def exists(file):
        with checked.reading(file):
            return file.exists() or file.is_symlink()  # the disk of a link's target may not be mounted

    return [run for run in runs if not exists(path(directory, optimizer, phase, run))]


def meet(tag: str) -> None:
    """Wait for the other processes, if there are any, to come to the same point."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(tag)


def write(
    directory: Path, phase: str, sweep: Sweep, *, identity: str | None = None, entry: plans.Entry | None = None
) -> None:
    """Store every run of a sweep that is not stored yet; a record that exists stays as it is.

    Of several processes, which must all see the directory, the first writes, and the others wait for it.

    Args:
      directory: of the workload.
      phase: "tune" or "final".
      sweep: the results.
      identity: the hash of everything that can change the runs' numbers.
      entry: the plan that they were trained by.

    Raises:
      UserError: a file cannot be written.
    """
    if jax.process_index() == 0:
        _write(directory, phase, sweep, identity, entry)
    meet("runs written")


def _write(directory: Path, phase: str, sweep: Sweep, identity: str | None, entry: plans.Entry | None) -> None:
    for i, (point, seed) in enumerate(zip(sweep.point, sweep.seeds, strict=True)):
        run = sweep.points[point], int(seed)
        if not missing(directory, sweep.optimizer, phase, [run]):
            continue
        content = {
            "identity": identity,
            "plan": None if entry is None else plans.note(entry, sweep.optimizer, phase, run),
            "optimizer": sweep.optimizer,
            "hyperparameters": run[0],
            "seed": run[1],
            "phase": phase,
            "steps": sweep.steps.tolist(),
            "examples": sweep.examples.tolist(),
            "epochs": sweep.epochs.tolist(),
            "seconds": sweep.seconds[i].tolist(),
            "compile_seconds": float(sweep.compile_seconds[i]),
            "curves": {name: strict_json.encode(x[i].tolist()) for name, x in sweep.curves.items()},
            "test": {name: strict_json.encode(x[i].tolist()) for name, x in sweep.test.items()},
        }
        checked.write(path(directory, sweep.optimizer, phase, run), "run", content)


def read(
    directory: Path, optimizer: str, phase: str, runs: Sequence[Run], accepted: Collection[str | None] | None = None
) -> Sweep:
    """The finished runs as one Sweep, in the order of `runs`; see `records` for the arguments and errors."""
    return stack(optimizer, runs, records(directory, optimizer, phase, runs, accepted))


def records(
    directory: Path, optimizer: str, phase: str, runs: Sequence[Run], accepted: Collection[str | None] | None = None
) -> list[dict[str, Any]]:
    """The content of the record of each run, checked.

    Args:
      directory: of the workload.
      optimizer, phase, runs: what the records must be of.
      accepted: the identities that a record may have, None among them for records of before identities; None: any.

    Raises:
      UserError: a file cannot be read, is damaged, holds another run, has another identity, or has other steps or
        metrics than the other runs.
    """
    files = [path(directory, optimizer, phase, run) for run in runs]
    contents = []
    for file, run in zip(files, runs, strict=True):
        content = _read(file)
        _check_run(file, content, optimizer, phase, run)
        if accepted is not None and content.get("identity") not in accepted:
            raise UserError(
                f"{file} has the identity {content.get('identity')}, which is not this study's: its data, code or"
                " library versions differ; choose another --workdir, or delete it and run the same command again,"
                " which trains that run again"
            )
        contents.append(content)
    for file, content in zip(files, contents, strict=True):
        for what, names in (("steps", list), ("curves", sorted), ("test", sorted)):
            ours, first = names(content[what]), names(contents[0][what])
            if ours != first:
                raise UserError(
                    f"{file} has other {'test metrics' if what == 'test' else what} than {files[0].name}: they come"
                    " from different versions or configs; choose another --workdir, or delete the older one and run"
                    " the same command again, which trains that run again"
                )
    return contents


def stack(optimizer: str, runs: Sequence[Run], contents: list[dict[str, Any]]) -> Sweep:
    """The Sweep of the records of `runs`, one or more."""
    points, point = distinct(runs)
    first = contents[0]

    def array(values):
        return np.array(strict_json.decode(values), float)  # None, in older records what is not finite, becomes NaN

    return Sweep(
        optimizer=optimizer,
        points=points,
        point=point,
        seeds=np.array([seed for _, seed in runs]),
        steps=np.array(first["steps"]),
        examples=np.array(first["examples"]),
        epochs=np.array(first["epochs"]),
        seconds=array([run["seconds"] for run in contents]),
        curves={name: array([run["curves"][name] for run in contents]) for name in first["curves"]},
        test={name: array([run["test"][name] for run in contents]) for name in first["test"]},
        compile_seconds=array([run["compile_seconds"] for run in contents]),
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = checked.read(file, "run")
        if _is_record(content):
            return content
    except checked.Damaged:
        pass  # told below, as a wrong shape is
    raise UserError(f"{file} is damaged; delete it and run the same command again, which trains that run again")


def _check_run(file: Path, content: dict[str, Any], optimizer: str, phase: str, run: Run) -> None:
    own = content["hyperparameters"], content["seed"]
    if (content["optimizer"], content["phase"], *own) != (optimizer, phase, *run):
        raise UserError(
            f"{file} holds the run of {_describe(content['optimizer'], content['phase'], own)}, not of"
            f" {_describe(optimizer, phase, run)}; put the right file in its place, or delete it and run the same"
            " command again, which trains that run again"
        )


def _describe(optimizer: str, phase: str, run: Run) -> str:
    """A run in a line: the beginning of its texts, which may be anything."""
    point = ", ".join(f"{key[:40]!r}: {value!r}" for key, value in list(run[0].items())[:8])
    return f"{optimizer[:80]!r} with {{{point}}} and seed {run[1]} ({phase[:20]!r})"


def _is_record(content: Any) -> bool:
    """Whether a content has the fields of a record, each of its shape."""
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list):
        return False
    length, curves, test = len(content["steps"]), content.get("curves"), content.get("test")

    def is_row(values, number=checked.is_number):
        return isinstance(values, list) and len(values) == length and all(map(number, values))

    def is_whole(value):
        return checked.is_number(value, whole=True) and value > 0

    def is_value(value):
        not_finite = value is None or isinstance(value, str) and value in strict_json.NOT_FINITE
        return not_finite or checked.is_number(value)

    texts = [content.get("optimizer"), content.get("phase")]
    numbers = [content.get("compile_seconds"), content.get("seed")]
    return (
        length > 0
        and is_row(content["steps"], is_whole)
        and is_row(content.get("examples"), is_whole)
        and is_row(content.get("epochs"))
        and is_row(content.get("seconds"))
        and isinstance(curves, dict)
        and {"loss", "validation/loss"} <= curves.keys()
        and all(is_row(values, is_value) for values in curves.values())
        and isinstance(test, dict)
        and all(map(is_value, test.values()))
        and all(isinstance(text, str) for text in texts)
        and all(map(checked.is_number, numbers))
        and checked.is_point(content.get("hyperparameters"))
        and isinstance(content.get("identity"), str | None)
        and isinstance(content.get("plan"), dict | None)
    )
