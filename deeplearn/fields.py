"""What a value may be, as data: the ranges and choices of config fields and of arguments, checked in one place."""

import math
import sys
from numbers import Integral, Real
from typing import Any, NamedTuple

from deeplearn.errors import UserError, unknown

KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}


class Field(NamedTuple):
    """What a field may hold.

    Fields:
      kind: int, float (whole numbers too), bool or str.
      low, high: the ends of a number's range.
      above, below: whether `low` itself, or `high` itself, is out of range.
      choices: the texts that exist; () for any.
      unset: whether None is allowed.
      many: whether it holds a tuple of such values, which may be empty.
      note: shown behind the rule, in brackets.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()
    unset: bool = False
    many: bool = False
    note: str = ""


LARGEST = 2**31 - 1  # step counters and indices have 32 bits
COUNT = Field(int, 1, LARGEST)
OPTIONAL_COUNT = Field(int, 0, LARGEST, note="0 turns it off")
AMOUNT = Field(float, 0, note="0 turns it off")
FRACTION = Field(float, 0, 1, below=True)
SIZE = Field(int, 1, 2**20)  # of an axis of parameters: a larger one is a slip
SIZES = SIZE._replace(many=True)
DEPTH = Field(int, 1, 10_000)
SWITCH = Field(bool)
TEXT = Field(str)
SEED = Field(int, 0, 2**32 - 1)  # all bits that jax.random.key uses, whether jax_enable_x64 is set or not


def rule(value: Any, field: Field) -> str:
    """What a field may hold, in words; of a number of the right kind, the end that it is beyond.

    >>> rule(0, COUNT), rule(2**31, COUNT), rule(1.5, FRACTION), rule(0, Field(float, 0, above=True))
    ('at least 1', 'at most 2147483647', 'in [0, 1)', 'above 0')
    >>> rule("a", COUNT), rule(math.nan, FRACTION)
    ('a whole number from 1 to 2147483647', 'a finite number in [0, 1)')
    >>> rule((8, 0), SIZES), rule("a", AMOUNT)
    ('a list, each of it a whole number from 1 to 1048576', 'a finite number, at least 0 (0 turns it off)')
    """
    low, high = field.low, field.high
    least = f"above {low}" if field.above else f"at least {low}"
    inside = f"in {'(' if field.above else '['}{low}, {high}{')' if field.below else ']'}"
    both, open_end = math.isfinite(low) and math.isfinite(high), field.above or field.below
    note = f" ({field.note})" if field.note else ""
    if not field.many and fits(value, Field(field.kind)):
        return (inside if both and open_end else least if value <= low else f"at most {high}") + note
    text = ("a list, each of it " if field.many else "") + KINDS[field.kind]
    if both:
        text += f" {inside}" if open_end else f" from {low} to {high}"
    elif math.isfinite(low):
        text += f" {least}" if field.above else f", {least}"
    return text + ", or None" * field.unset + note


def fits(value: Any, field: Field) -> bool:
    """Whether a field may hold a value. A truth value is no number, and a number no truth value.

    >>> fits(0.5, FRACTION), fits(1, FRACTION), fits(math.nan, FRACTION), fits(True, COUNT), fits([8, 0], SIZES)
    (True, False, False, False, False)
    """
    if value is None:
        return field.unset
    if field.many:
        each = field._replace(many=False, unset=False)
        return isinstance(value, (tuple, list)) and all(fits(item, each) for item in value)
    if field.kind is str:
        return isinstance(value, str) and (not field.choices or value in field.choices)
    if field.kind is bool or isinstance(value, bool):
        return field.kind is bool and isinstance(value, bool)
    if not isinstance(value, Integral if field.kind is int else Real):
        return False
    inside = value > field.low if field.above else value >= field.low
    inside = inside and (value < field.high if field.below else value <= field.high)
    finite = abs(value) <= sys.float_info.max if isinstance(value, Integral) else math.isfinite(value)
    return bool(inside and (finite or field.kind is int))


def check(name: str, value: Any, field: Field) -> None:
    """Raise a UserError of one line, with the rule or the nearest choices, unless the field may hold the value.

    >>> check("config.dropout", 1.5, FRACTION)
    Traceback (most recent call last):
    deeplearn.errors.UserError: config.dropout is 1.5; it must be in [0, 1)
    """
    if fits(value, field):
        return
    if field.choices and isinstance(value, str):
        raise unknown(name.rpartition(".")[2], value, field.choices)
    raise UserError(f"{name} is {_short(value)}; it must be {rule(value, field)}")


def check_finite(name: str, value: Any) -> None:
    """Raise UserError if a value of which nothing else is known is or holds a number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} is {value}; it must be a finite number")
    parts = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        check_finite(name, part)


def _short(value: Any) -> str:
    """A value on one line."""
    try:
        return " ".join(repr(value).split())[:80]
    except ValueError:  # Python makes no text of it
        return "a number of thousands of digits"
