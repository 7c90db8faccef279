"""The form in which a flag names something with its settings: `name` or `name(key=value, ...)`."""

import ast
import re
from typing import Any

from deeplearn import fields
from deeplearn.errors import UserError, unknown


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a spec; values are Python literals.

    Raises UserError for anything that is not of that form.

    >>> parse("adam(b1=0.8, eps=1e-6)")
    ('adam', {'b1': 0.8, 'eps': 1e-06})
    >>> parse("cosine")
    ('cosine', {})
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        settings = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if call.args or not isinstance(call.func, ast.Name) or None in settings:
            raise ValueError
        return call.func.id, settings
    except (SyntaxError, ValueError):
        raise UserError(f"{text!r} is not of the form name or name(key=value), e.g. adam(b1=0.8)") from None


def split_list(text: str) -> list[str]:
    """The specs of a list; only commas outside parentheses divide it.

    >>> split_list("adam, adamw(b1=0.8,b2=0.9), sgd")
    ['adam', 'adamw(b1=0.8,b2=0.9)', 'sgd']
    """
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


NAMES = {float: "number", int: "whole number", bool: "truth value", str: "string"}


def settings(kind: str, name: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given`, each value of its default's type; a whole number will do for any number.

    Raises UserError for a key that `defaults` lacks, a value of another type, and an integer too large for a float.

    >>> settings("optimizer", "adam", {"b1": 0}, {"b1": 0.9, "b2": 0.999})
    {'b1': 0.0}
    """
    for key, value in given.items():
        if key not in defaults:
            raise unknown(f"setting of {kind} {name}", key, defaults)
        default, wanted = defaults[key], type(defaults[key])
        if type(value) not in ((int, float) if wanted is float else (wanted,)):
            raise UserError(f"{kind} {name}: {key}={value!r} is no {NAMES[wanted]}, e.g. {key}={default!r}")
        if wanted is float and type(value) is int:  # which may be too large for a float
            fields.check(f"{kind} {name}: {key}", value, fields.Field(float))
    return {key: type(defaults[key])(value) for key, value in given.items()}
