"""What a value may be, against a direct reading of each rule."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn import fields
from deeplearn.errors import UserError
from deeplearn.fields import Field

NUMBERS = st.one_of(st.integers(-10, 10), st.floats(), st.integers(2**31 - 3, 2**31 + 3), st.integers(10**308, 10**310))
ENDS = st.one_of(st.integers(-3, 3), st.floats(-3, 3))


@given(NUMBERS, ENDS, ENDS, st.booleans(), st.booleans())
@example(1, 0, 1, False, True)
@example(0, 0, 1, True, False)
@example(math.nan, -3, 3, False, False)
@example(10**309, 0, 3, False, False)
def test_ranges(value, low, high, above, below):
    for ends in ((low, high), (low, math.inf), (-math.inf, high)):
        field = Field(float, *ends, above, below)
        inside = (ends[0] < value if above else ends[0] <= value) and (value < ends[1] if below else value <= ends[1])
        assert fields.fits(value, field) == (
            inside and -1.8e308 < value < 1.8e308 and abs(value) <= 1.7976931348623157e308
        )


@pytest.mark.parametrize(
    "kind, right, wrong",
    [
        (int, [0, -7, np.int32(3), 10**400], [1.0, True, "1", None, math.inf, np.float32(1), (1,)]),
        (float, [0, 0.5, np.float32(3), -1e308], [True, "1", None, math.inf, math.nan, 10**400, [0.5]]),
        (bool, [True, False], [0, 1, None, "True", 0.0]),
        (str, ["", "a"], [None, 1, b"a", ["a"]]),
    ],
)
def test_kinds(kind, right, wrong):
    assert all(fields.fits(value, Field(kind)) for value in right)
    assert not any(fields.fits(value, Field(kind)) for value in wrong)
    assert all(fields.fits(value, Field(kind, unset=True)) == (value is None) for value in wrong)
    assert fields.fits(tuple(right), Field(kind, many=True)) and fields.fits((), Field(kind, many=True))
    assert not any(fields.fits((*right, value), Field(kind, many=True)) for value in wrong)


LINES = {
    "x is -1; it must be at least 1": (-1, fields.COUNT),
    "x is 1099511627776; it must be at most 2147483647": (2**40, fields.COUNT),
    r"x is 'a\nb'; it must be a whole number from 1 to 2147483647": ("a\nb", fields.COUNT),
    "x is -0.1; it must be at least 0 (0 turns it off)": (-0.1, fields.AMOUNT),
    "x is inf; it must be a finite number, at least 0 (0 turns it off)": (math.inf, fields.AMOUNT),
    "x is 1; it must be in [0, 1)": (1, fields.FRACTION),
    "x is 0; it must be above 0": (0, Field(float, 0, above=True, unset=True)),
    "x is '1'; it must be a finite number above 0, or None": ("1", Field(float, 0, above=True, unset=True)),
    "x is a number of thousands of digits; it must be at most 4294967295": (10**5000, fields.SEED),
    "unknown x 'grr'; did you mean gru?": ("grr", Field(str, choices=("gru", "lstm"))),
    "x is 8; it must be a list, each of it a whole number from 1 to 1048576": (8, fields.SIZES),
}


@pytest.mark.parametrize("line", LINES)
def test_lines(line):
    with pytest.raises(UserError) as raised:
        fields.check("x", *LINES[line])
    assert str(raised.value) == line
