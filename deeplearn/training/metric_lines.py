"""The lines of metrics.jsonl: a JSON object each, whose last key "crc" is a checksum of the others.

NaN and infinities are strings, see deeplearn.strict_json. The value of "crc" is the
CRC-32 of the line without that key, in hexadecimal. Lines of older runs have no checksum.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any

from deeplearn import strict_json
from deeplearn.errors import UserError

_CRC = re.compile(rb'(.*), "crc": "([0-9a-f]{8})"\}', re.DOTALL)
_RESERVED = ("step", "crc")


def encode(step: int, numbers: Mapping[str, float]) -> str:
    """One line, with its end.

    >>> encode(200, {"loss": 0.25})
    '{"step": 200, "loss": 0.25, "crc": "3b11ff1c"}\\n'
    """
    if taken := [name for name in _RESERVED if name in numbers]:
        raise ValueError(f"a metric cannot have the name {taken[0]!r}")
    text = strict_json.dumps({"step": int(step), **numbers})
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'


def decode(path: str | os.PathLike, data: bytes) -> list[tuple[bytes, dict[str, float]]]:
    """Each line, with its end, and its record, {"step": 200, "loss": 0.25}; without a last line that a kill cut off.

    Args:
      path: of the file, for the error.
      data: its content.

    Raises:
      UserError: another line is not a record, or its step is not larger than the one before.
    """
    *lines, last = data.split(b"\n")  # str.splitlines would split at characters that JSON strings may contain
    records, previous = [], -math.inf
    for number, line in enumerate(lines, 1):
        record, damage = _record(line)
        if record is not None and record["step"] <= previous:
            damage = f"its step {record['step']} does not come after {previous}"
        if damage:
            raise _damaged(path, number, damage)
        previous = record["step"]
        records.append((line + b"\n", record))
    if last and not _may_be_cut_off(last):
        raise _damaged(path, len(lines) + 1, "it is not a record")
    return records


def _damaged(path: str | os.PathLike, number: int, damage: str) -> UserError:
    return UserError(f"line {number} of {path} is damaged ({damage}); restore or remove it")


def _record(line: bytes) -> tuple[dict[str, float] | None, str | None]:
    """The record of a line, and what is wrong with it: one of the two is None."""
    sealed = _CRC.fullmatch(line.rstrip())
    if sealed and zlib.crc32(sealed[1] + b"}") != int(sealed[2], 16):
        return None, "its checksum is wrong"
    try:
        content = json.loads(line.decode())
        step = content.pop("step")
        if sealed:
            del content["crc"]
        if type(step) is not int or abs(step) >= 2**63:
            return None, "its step is not an integer"
        return {"step": step} | {name: _to_float(value) for name, value in content.items()}, None
    except UnicodeDecodeError:
        return None, "it is not UTF-8"
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None, "it is not a record"


def _may_be_cut_off(line: bytes) -> bool:
    """Whether a last line without its end can be the beginning of a record: nothing follows a complete object.

    >>> [_may_be_cut_off(line) for line in (b'{"step": 1', b'{"step": 1}', b'{"step": 1}x', b'{"step": 1}\\x8a', b"x")]
    [True, True, False, False, False]
    """
    if not line.startswith(b"{"):
        return False
    text = line.decode(errors="ignore")  # the last character may be cut off
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
        return text[:end].encode() == line  # of the bytes: a flip turns the line's end into one that is no character
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False


def _to_float(value: Any) -> float:
    """The number that was written; other strings are none, such as a checksum under a damaged key."""
    if isinstance(value, str):
        return strict_json.NOT_FINITE[value]
    if isinstance(value, bool):
        raise TypeError("a truth value is not a number")
    return float(value)
