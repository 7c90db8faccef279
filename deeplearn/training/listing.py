"""The checkpoints in a directory: which there are, which is the best, and which may be deleted.

A writer may delete checkpoints while this lists them: a listing during which one vanished is taken again.
"""

import math
import pathlib
from collections.abc import Callable, Collection
from typing import NamedTuple

from deeplearn import files
from deeplearn.errors import UserError
from deeplearn.training import stored

TRIES = 100  # of a listing; a writer deletes a checkpoint per save, and a listing takes far less time than a save
_SIGN = {"min": 1, "max": -1}


class Checkpoint(NamedTuple):
    """A checkpoint in a directory.

    Fields:
      step: by its name.
      metric: the value that the best is chosen by.
      name: of its directory.
      written: when it was completed, in nanoseconds.
      identity: of its run, None in older checkpoints.
      damage: what is wrong with its record, None if nothing is; if it is damaged, metric and identity are None.
    """

    step: int
    metric: float | None
    name: str
    written: int
    identity: str | None = None
    damage: str | None = None


def listed(directory: pathlib.Path) -> list[Checkpoint]:
    """The checkpoints in a directory, by step; those with a metric after those of the same step without one.

    A directory that does not exist has none.

    Raises:
      UserError: the directory or a record cannot be read.
    """
    previous = None
    for _ in range(TRIES):
        names = sorted(path.name for path in paths(directory) if stored.NAME.fullmatch(path.name))
        there = {name: _described(directory / name) for name in names}
        if None not in there.values() or there == previous:  # an interrupted save in a bucket stays incomplete
            complete = [checkpoint for checkpoint in there.values() if checkpoint]
            return sorted(complete, key=lambda c: (c.step, c.metric is not None, c.written))
        previous = there
    raise changing(directory)


def paths(directory: pathlib.Path) -> list[pathlib.Path]:
    """What is in a directory; nothing if it does not exist.

    Raises:
      UserError: it cannot be listed.
    """
    try:
        files.forget_listings(directory)
        return list(directory.iterdir())
    except Exception as error:  # the clients of buckets have no base class for what can go wrong
        absent = isinstance(error, FileNotFoundError)
        if absent and (files.in_bucket(directory) or not directory.is_symlink()):  # a link's disk may not be mounted
            return []
        remedy = "start again when it can be read, or choose another --workdir"
        raise files.unreadable(f"the checkpoints in {directory}", error, remedy) from error


def changing(directory: pathlib.Path) -> UserError:
    """The error for a directory whose checkpoints are deleted faster than they can be read."""
    return UserError(
        f"the checkpoints in {directory} are deleted faster than they can be read; "
        "evaluate a copy of the directory, or wait for the run that writes there"
    )


def best_first(checkpoints: Collection[Checkpoint], mode: str) -> list[Checkpoint]:
    """Those with a metric, the best first, the earliest first among equals.

    >>> a, b = Checkpoint(1, 0.5, "a", 0), Checkpoint(2, 0.7, "b", 0)
    >>> [checkpoint.name for checkpoint in best_first([a, b, Checkpoint(3, None, "c", 0)], "max")]
    ['b', 'a']
    """
    with_metric = [c for c in checkpoints if c.metric is not None and math.isfinite(c.metric)]  # older ones may not be
    return sorted(with_metric, key=lambda checkpoint: _SIGN[mode] * checkpoint.metric)


def to_keep(
    checkpoints: Collection[Checkpoint],
    keep: int,
    mode: str,
    damaged: Collection[str],
    ours: Callable[[str | None], bool],
) -> set[str]:
    """The names that must stay: the newest, the best, those of other runs, and damaged ones of steps still to come.

    Args:
      checkpoints: from `listed`.
      keep: how many of the newest stay.
      mode: whether the best metric is the "min" or the "max".
      damaged: names of checkpoints that failed to restore.
      ours: whether an identity is acceptable.

    >>> checkpoints = [Checkpoint(1, None, "a", 0), Checkpoint(2, None, "b", 0), Checkpoint(3, None, "c", 0)]
    >>> sorted(to_keep(checkpoints, 1, "min", {"c"}, lambda identity: True))
    ['b', 'c']
    """
    broken = [c for c in checkpoints if c.damage or c.name in damaged]
    foreign = [c for c in checkpoints if not c.damage and not ours(c.identity)]
    intact = [c for c in checkpoints if c not in broken and c not in foreign]
    newest = {c.step: c.name for c in intact}
    kept = {*list(newest.values())[-keep:], *(c.name for c in best_first(intact, mode)[:1])}
    kept |= {c.name for c in foreign}
    return kept | {c.name for c in broken if c.step > max(newest, default=-1)}


def _described(path: pathlib.Path) -> Checkpoint | None:
    """One checkpoint; None if it vanished, or was not completed."""
    record, damage = {}, None
    try:
        if not stored.is_complete(path):
            return None
        try:
            record = stored.read_record(path)
        except stored.Damaged as error:
            damage = str(error)
        written = stored.written(path)
    except (stored.Vanished, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and stored.is_complete(path):
            raise stored.unreadable(path, error) from error  # a link whose target is missing
        return None
    except Exception as error:  # the clients of buckets have no base class for what can go wrong
        raise stored.unreadable(path, error) from error
    step = int(stored.NAME.fullmatch(path.name)[1])
    return Checkpoint(step, record.get("metric"), path.name, written, record.get("identity"), damage)
