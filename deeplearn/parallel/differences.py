"""What must be alike on all processes of a run, and how to say that it is not."""

from collections.abc import Iterable, Mapping
from typing import Any

_ABSENT = "absent"


def named(ranks: Iterable[int]) -> str:
    """The processes of these ranks in words.

    >>> named([1]), named([1, 2, 5])
    ('process 1', 'processes 1, 2 and 5')
    """
    *others, last = map(str, sorted(ranks))
    return f"processes {', '.join(others)} and {last}" if others else f"process {last}"


def differences(fields: Mapping[int, Mapping[str, Any]]) -> str | None:
    """How some processes differ from process 0, if any does, in a line that shows the first three fields.

    >>> differences({0: {"lr": 0.1, "seed": 0}, 1: {"lr": 0.1, "seed": 0}, 2: {"lr": 0.3, "seed": 0}})
    'process 2 was not started as process 0 was: lr is 0.1 on process 0 and 0.3 on process 2'
    """
    mine, ranks, first = fields[0], [], {}
    for rank, theirs in sorted(fields.items()):
        names = [name for name in mine | theirs if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)]
        ranks += [rank] * bool(names)
        first = dict.fromkeys(names, rank) | first
    if not ranks:
        return None
    shown = [
        f"{name} is {mine.get(name, _ABSENT)} on process 0 and {fields[rank].get(name, _ABSENT)} on process {rank}"
        for name, rank in first.items()
    ]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    were = "were" if len(ranks) > 1 else "was"
    return f"{named(ranks)} {were} not started as process 0 was: {', '.join(shown[:3])}{more}"
