"""JSON as the standard has it, without NaN and infinity: these are the strings "NaN", "Infinity" and "-Infinity"."""

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """A value that JSON can hold, each number that is not finite as its string; `decode` gives the number back.

    Raises ValueError for a text that would come back as a number.

    >>> encode({"loss": math.nan, "accuracy": [0.5, -math.inf]})
    {'loss': 'NaN', 'accuracy': [0.5, '-Infinity']}
    """
    if isinstance(value, Mapping):
        return {name: encode(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, str) and value in NOT_FINITE:
        raise ValueError(f"the text {value!r} stands for a number")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode(value: Any) -> Any:
    """What `encode` was given, with lists for tuples.

    >>> decode({"loss": "NaN", "name": "a", "accuracy": [0.5, "-Infinity"]})
    {'loss': nan, 'name': 'a', 'accuracy': [0.5, -inf]}
    """
    if isinstance(value, Mapping):
        return {name: decode(item) for name, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def dumps(value: Any, **options) -> str:
    """The JSON text of `encode(value)`; options are those of `json.dumps`.

    >>> dumps({"loss": math.inf})
    '{"loss": "Infinity"}'
    """
    return json.dumps(encode(value), allow_nan=False, **options)
