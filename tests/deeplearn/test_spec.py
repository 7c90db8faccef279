import keyword

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn import spec
from deeplearn.errors import UserError

names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text("ab c"))


@given(names, st.dictionaries(names, values, max_size=4))
@example("a", {})
@example("a", {"b": -0.0, "c": True, "d": "a, b", "e": -1})
@example("a", {"b": 1e-300})
def test_parse_reads_what_is_written(name, settings):
    text = f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"
    assert spec.parse(text) == (name, settings)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "adam(",
        "adam)",
        "adam(0.9)",
        "adam(b1)",
        "adam(b1=x)",
        "adam(**b)",
        "a b",
        "a.b",
        "adam(b1=1)(c=1)",
    ],
)
def test_bad_syntax_is_one_line_for_the_user(text):
    with pytest.raises(UserError, match="is not of the form") as error:
        spec.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("adam", ["adam"]),
        ("adam, sgd ,", ["adam", "sgd"]),
        (
            "adam(b1=0.8, b2=0.9),sgd,lion(b1=0.8,b2=0.9)",
            ["adam(b1=0.8, b2=0.9)", "sgd", "lion(b1=0.8,b2=0.9)"],
        ),
        ("", []),
    ],
)
def test_split_list_leaves_parentheses_whole(text, parts):
    assert spec.split_list(text) == parts


DEFAULTS = {"rate": 0.5, "count": 3, "flag": True, "kind": "a"}


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"rate": 1}, 1.0),
        ({"rate": 0.25}, 0.25),
        ({"count": 4}, 4),
        ({"flag": False}, False),
        ({"kind": "b"}, "b"),
    ],
)
def test_settings_have_the_types_of_their_defaults(given, expected):
    (value,) = spec.settings("thing", "name", given, DEFAULTS).values()
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"rat": 1}, "did you mean rate"),
        ({"rate": True}, "rate=True is no number"),
        ({"rate": "fast"}, "rate='fast' is no number"),
        ({"rate": 10**400}, "thing name: rate is 1000.*; it must be a finite number"),
        ({"count": 2.5}, "count=2.5 is no whole number"),
        ({"flag": 1}, "flag=1 is no truth value"),
        ({"kind": None}, "kind=None is no string"),
    ],
)
def test_settings_of_another_name_or_type_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        spec.settings("thing", "name", given, DEFAULTS)
