"""The plan of an optimizer's runs, stored beside them: which runs train in one program, in which order, and how.

The bits of a run depend on its lane, on the number of lanes and on how they share a device. A study therefore stores
its plan before it trains, and trains whatever is missing exactly as the plan says.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deeplearn.comparison import checked, names
from deeplearn.comparison.names import Run
from deeplearn.errors import UserError

PLAN = "plan.json"
PHASES = ("tune", "final")
HOW = {True: "side by side", False: "one after another"}


class Entry(NamedTuple):
    """Runs that were planned together.

    They train in slices: consecutive `lanes` runs, the last slice filled up by repeating its runs.

    Fields:
      together: whether the lanes of a device run side by side.
      lanes: runs in one program.
      devices: their number.
      runs: hyperparameters and seed of each, in order.
    """

    together: bool
    lanes: int
    devices: int
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        return f"{self.lanes} lanes, {HOW[self.together]}, on {self.devices} device{'s' * (self.devices > 1)}"


Plans = dict[str, list[Entry]]  # by phase


def path(directory: Path, optimizer: str) -> Path:
    """The file of an optimizer's plan."""
    return directory / names.folder(optimizer) / PLAN


def read(directory: Path, optimizer: str) -> Plans:
    """The stored plan of an optimizer, without entries if there is no file.

    Raises:
      UserError: the file cannot be read, is damaged, or is that of another optimizer.
    """
    file = path(directory, optimizer)
    with checked.reading(file):
        if not file.exists() and not file.is_symlink():  # the disk of a link's target may not be mounted
            return {phase: [] for phase in PHASES}
    try:
        content = checked.read(file, "plan")
    except checked.Damaged:
        content = None
    try:
        owner = content["optimizer"]
        plan = {phase: [_from_json(entry) for entry in content[phase]] for phase in PHASES}
        stems = {phase: [entry["runs"] for entry in content[phase]] for phase in PHASES}
    except (KeyError, TypeError, ValueError):
        # Deleting is safe: each record has the digest of its entry, and `check_orphans` compares it with the new one.
        raise UserError(
            f"{file} is damaged; restore it, or delete it and run the same command again: that makes a new plan, and"
            " trains nothing if the finished runs do not fit it"
        ) from None
    if owner != optimizer or stems != {phase: [_stems(e, optimizer, phase) for e in plan[phase]] for phase in PHASES}:
        raise UserError(
            f"{file} holds the plan of {str(owner)[:80]!r}, not of {optimizer!r}; put the right file in its place, or"
            " delete it and run the same command again"
        )
    return plan


def write(directory: Path, optimizer: str, plan: Plans) -> None:
    """Store the plan of an optimizer; of several processes, the first does."""
    if jax.process_index() == 0:
        content = {phase: [_as_json(entry, optimizer, phase) for entry in plan[phase]] for phase in PHASES}
        checked.write(path(directory, optimizer), "plan", {"optimizer": optimizer, **content})


def note(entry: Entry, optimizer: str, phase: str, run: Run) -> dict[str, Any]:
    """What a record keeps of its plan: the run's position in the entry, and the entry's digest.

    Args:
      entry: the part of the plan that has the run.
      optimizer, phase: of the entry.
      run: hyperparameters and seed, one of the entry's.
    """
    return {
        "together": entry.together,
        "lanes": entry.lanes,
        "devices": entry.devices,
        "position": entry.runs.index(run),
        "digest": digest(entry, optimizer, phase),
    }


def digest(entry: Entry, optimizer: str, phase: str) -> str:
    """A hash of everything in an entry."""
    return checked.checksum(_as_json(entry, optimizer, phase))[:16]


def unfinished(entries: Sequence[Entry], missing: Sequence[Run]) -> tuple[list[list[Run]], list[Run]]:
    """The missing runs of each entry, and those that no entry has.

    A run that several entries have belongs to the last: it was planned again.
    """
    owners = {_key(run): number for number, entry in enumerate(entries) for run in entry.runs}
    by_entry = [[run for run in missing if owners.get(_key(run)) == number] for number in range(len(entries))]
    return by_entry, [run for run in missing if _key(run) not in owners]


def slices(entry: Entry, missing: Sequence[Run]) -> list[int]:
    """The numbers of an entry's slices that have one of the missing runs.

    >>> runs = tuple(({"learning_rate": 0.1}, seed) for seed in range(5))
    >>> slices(Entry(True, 2, 1, runs), [runs[1], runs[4]])
    [0, 2]
    """
    return sorted({entry.runs.index(run) // entry.lanes for run in missing})


def length(entry: Entry, numbers: Sequence[int]) -> int:
    """How many runs these slices have.

    >>> length(Entry(True, 2, 1, tuple(({}, seed) for seed in range(5))), [0, 2])
    3
    """
    return sum(len(entry.runs[number * entry.lanes : (number + 1) * entry.lanes]) for number in numbers)


def differs(entry: Entry, together: bool | None, lanes: int | None) -> bool:
    """Whether an entry cannot be trained here as it was planned, or the user chose otherwise; None: no choice.

    lanes: as `deeplearn.comparison.lanes.at_most` gives them for the entry's runs.
    """
    wanted = (together, lanes, jax.device_count())
    return any(theirs not in (None, ours) for ours, theirs in zip(entry[:3], wanted, strict=True))


def check_entry(file: Path, entry: Entry, together: bool | None, lanes: int | None) -> None:
    """Raise UserError if an entry `differs`.

    Args:
      file: of the plan, for the message.
      entry: the stored part of the plan.
      together, lanes: as the user chose them; None: not chosen.
    """
    count = jax.device_count()
    if entry.devices != count:
        raise UserError(
            f"{file} has a plan for {entry.devices} device{'s' * (entry.devices > 1)}, and there are {count} here, with"
            f" which the runs get other bits; use {entry.devices}, or make a new plan for the missing runs with"
            " --accept=implementations"
        )
    if differs(entry, together, lanes):
        wanted = [HOW[together]] * (together is not None) + [f"{lanes} lanes"] * (lanes is not None)
        raise UserError(
            f"{file} plans the missing runs with {entry}, and {', '.join(wanted)} would give other bits; leave"
            " that choice out, or make a new plan for the missing runs with --accept=implementations"
        )


def orphans(
    entries: Sequence[Entry], optimizer: str, phase: str, runs: Sequence[Run], records: Sequence[dict[str, Any]]
) -> list[tuple[Run, str]]:
    """The finished runs whose records name an entry that is not stored, each with that entry's digest.

    There are such runs when the file of the plan is lost. Records from before there were plans name none.

    Args:
      entries: the stored ones.
      optimizer, phase: of the entries and of the runs.
      runs: hyperparameters and seed each, all of them finished.
      records: one for each run.
    """
    stored = {digest(entry, optimizer, phase) for entry in entries}
    named = [(run, (record.get("plan") or {}).get("digest")) for run, record in zip(runs, records, strict=True)]
    return [(run, name) for run, name in named if name is not None and name not in stored]


def check_orphans(file: Path, entry: Entry, optimizer: str, phase: str, digests: Sequence[str]) -> None:
    """Raise UserError if finished runs that no stored entry has were not trained by `entry`, made for them now.

    Args:
      file: of the plan, for the message.
      entry: a new plan for these runs.
      optimizer, phase: of the runs.
      digests: those in the records of these runs.
    """
    if set(digests) - {digest(entry, optimizer, phase)}:
        raise UserError(
            f"{file} lacks the plan of finished runs, and a new plan ({entry}) is not theirs; restore the file, choose"
            " another --workdir, or make a new plan for the missing runs with --accept=implementations"
        )


def _key(run: Run) -> tuple:
    return tuple(run[0].items()), run[1]


def _stems(entry: Entry, optimizer: str, phase: str) -> list[str]:
    return [names.stem(optimizer, phase, run) for run in entry.runs]


def _as_json(entry: Entry, optimizer: str, phase: str) -> dict[str, Any]:
    points, seeds = zip(*entry.runs, strict=True)
    runs = {"runs": _stems(entry, optimizer, phase), "hyperparameters": list(points), "seeds": list(seeds)}
    return {"together": entry.together, "lanes": entry.lanes, "devices": entry.devices, **runs}


def _from_json(entry: Any) -> Entry:
    """The Entry of a JSON value; KeyError, TypeError or ValueError if it is none."""
    runs = tuple(zip(entry["hyperparameters"], entry["seeds"], strict=True))
    numbers = [entry["lanes"], entry["devices"], *entry["seeds"]]
    if (
        type(entry["together"]) is not bool
        or not all(checked.is_number(number, whole=True) for number in numbers)
        or not all(map(checked.is_point, entry["hyperparameters"]))
        or min(entry["lanes"], entry["devices"], len(runs)) < 1
        or entry["lanes"] % entry["devices"]
    ):
        raise ValueError("not an entry of a plan")
    return Entry(entry["together"], entry["lanes"], entry["devices"], runs)
