"""The messages that processes send each other once they have met, and what each may hold.

{"say": value}   for `wire.gathered`; of process 0 the list of all values
{"beat": ranks}  a heartbeat, with the processes that the sender has not heard for a while
{"end": word}    the sender ends, with the word of `end`
"""

from typing import Any

from deeplearn.parallel.frames import Malformed

LINE = 10_000  # characters of a line that is passed on


def end(status: int, line: str, patient: bool = False) -> dict[str, Any]:
    """The word with which processes end: exit status, the line to print, and whether others may say it first."""
    return {"status": status, "line": line[:LINE], "patient": patient}


def checked(message: dict[str, Any], sender: int, count: int) -> tuple[str, Any]:
    """A message's kind and value.

    Args:
      message: what was received.
      sender: the rank that sent it.
      count: how many processes there are.

    Raises:
      Malformed: this is no message that a process sends.

    >>> checked({"beat": [1]}, sender=0, count=2)
    ('beat', [1])
    """
    kind = next(iter(message), None)
    check = {"say": _says, "beat": _beats, "end": _ends}.get(kind)
    if len(message) != 1 or check is None:
        raise Malformed("a message of no known kind")
    if not check(message[kind], sender, count):
        raise Malformed(f"a message {kind!r} with a wrong value")
    if kind == "end":
        return kind, message[kind] | {"line": one_line(message[kind]["line"])}
    return kind, message[kind]


def one_line(text: str) -> str:
    """What another process says, fit for a terminal.

    >>> one_line("a\\nb")
    'a b'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _says(value: Any, sender: int, count: int) -> bool:
    return sender != 0 or (isinstance(value, list) and len(value) == count)


def _beats(value: Any, sender: int, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) < count
        and all(type(rank) is int and 0 <= rank < count for rank in value)
    )


def _ends(value: Any, sender: int, count: int) -> bool:
    if not isinstance(value, dict) or value.keys() != {"status", "line", "patient"}:
        return False
    status, line, patient = value["status"], value["line"], value["patient"]
    return (
        type(status) is int
        and 0 <= status < 256
        and isinstance(line, str)
        and len(line) <= LINE
        and isinstance(patient, bool)
    )
