"""A user's mistake, said in one line that holds the cause and the remedy."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's: the commands print its one line and exit with status 2, without a traceback."""


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do.

    >>> str(unknown("optimizer", "adan2", ["adam", "adan", "lion"]))
    "unknown optimizer 'adan2'; did you mean adan or adam?"
    >>> str(unknown("optimizer", "xyz", ["adam", "lion"]))
    "unknown optimizer 'xyz'; there are: adam, lion"
    """
    options = sorted(options)
    nearest = difflib.get_close_matches(name.lower(), options, n=3, cutoff=0.5)
    remedy = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are: {', '.join(options)}"
    return UserError(f"unknown {kind} {name!r}; {remedy}")
