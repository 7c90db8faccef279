import pathlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deeplearn.comparison import names

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded machine generates slowly
KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,3}", fullmatch=True)
VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr), st.integers(-100, 100).map(str), st.booleans().map(repr)
)


@st.composite
def ordinary(draw):
    """An optimizer with settings, as people write them."""
    settings = draw(st.lists(st.tuples(KEYS, VALUES), max_size=3))
    separator = draw(st.sampled_from([",", ", "]))
    inside = separator.join(f"{key}={value}" for key, value in settings)
    return draw(KEYS) + (f"({inside})" if settings else "")


@st.composite
def like(draw):
    """Texts that differ in punctuation from an ordinary one, where it would be easy to confuse them."""
    text = draw(ordinary())
    at = draw(st.integers(0, len(text)))
    return (
        text[:at]
        + draw(st.sampled_from(["-", "--", " ", "(", ")", "=", ",", "@", "/", "..", "", "e-", "\0"]))
        + text[at:]
    )


TEXTS = st.one_of(ordinary(), like(), ordinary().map(names.folder), st.text(max_size=50))


@UNHURRIED
@given(texts=st.lists(TEXTS, max_size=6, unique=True))
@example(texts=["adam(b1=0.8)", "adam-b1-0.8", "adam(b1=0.8", "adam b1 0.8", "adam(b1=-0.8)", "adam(b1= 0.8)"])
@example(texts=["Adam", "ADAM", "adam", "aDam(b1=0.8)", "Adam(b1=0.8)"])
@example(texts=["adam(a=1e-2)", "adam(a=1e,2=0)", "adam(a=1,e=2)", "adam(a=1e2)", "adam(a=1E-2)"])
@example(texts=["adam(a=1,b=-2)", "adam(a=1, b=2)", "adam(a=1,b=2)", "adam(a=1,-b=2)", "adam(a=True)", "adam(a=true)"])
@example(
    texts=[
        "",
        ".",
        "..",
        "../..",
        "/",
        "/etc",
        "a/b",
        "a\0b",
        "-",
        "@",
        "a" * 300,
        "a" * 301,
        "a\n",
        "a",
        "٣",
        "\ud800",
    ]
)
def test_no_two_texts_share_a_directory(texts):
    """Nor on a disk that ignores case; and each stays within its parent."""
    folders = [names.folder(text) for text in texts]
    assert len({name.lower() for name in folders}) == len(texts)
    for name in folders:
        assert pathlib.PurePosixPath(name).parts == (name,) and name not in ("", ".", "..")
        assert "\0" not in name and len(name.encode()) <= 150


@UNHURRIED
@given(text=TEXTS)
@example(text="a" * 151)
@example(text="A")
@example(text=".")
@example(text="")
@example(text="a/b")
def test_a_text_does_not_share_its_directory_with_the_text_of_that_name(text):
    name = names.folder(text)
    assert name == text or names.folder(name) != name


@pytest.mark.parametrize(
    "text, name",
    [
        ("adam", "adam"),
        ("minibatch_sgd", "minibatch_sgd"),
        ("adam(b1=0.8)", "adam-b1-0.8"),
        ("momentum(momentum=0.8)", "momentum-momentum-0.8"),
        ("adamw(b1=0.8,weight_decay=0.1)", "adamw-b1-0.8-weight_decay-0.1"),
        ("adamw(b1=0.8, bias_correction=False)", "adamw-b1-0.8--bias_correction-False"),
        ("adam(eps=1e-08)", "adam-eps-1e-08"),
    ],
)
def test_studies_of_before_find_their_directories(text, name):
    assert names.folder(text) == name


@pytest.mark.parametrize(
    "one, other",
    [
        (({"a": 1.0, "b": 2.0}, 0), ({"a": 2.0, "b": 1.0}, 0)),
        (({"a": 1.0}, 0), ({"b": 1.0}, 0)),
        (({"a": 1.0}, 0), ({"a": 1.0}, 1)),
        (({"a": 0.1}, 0), ({"a": 0.1 + 2e-17}, 0)),
    ],
)
def test_no_two_runs_share_a_file(one, other):
    same = one == other
    assert (names.stem("adam", "tune", one) == names.stem("adam", "tune", other)) is same
    assert names.stem("adam", "tune", one) != names.stem("adam", "final", one)
    assert names.stem("adam", "tune", one) != names.stem("nadam", "tune", one)
