"""The list of wrong changes fits the code as it is; `make mutants` runs them."""

import time

import pytest

from tests.mutants import run

CHANGES = run.changes()


@pytest.mark.parametrize("change", CHANGES, ids=[f"{c['file']}: {c['why']}" for c in CHANGES])
def test_a_change_can_be_made(change):
    assert run.check(change) is None


def test_no_change_is_made_twice():
    places = [(change["file"], change["before"], change["after"]) for change in CHANGES]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"file": "no.py", "before": "a", "after": "b", "tests": ["tests"]}, "no no.py"),
        ({"file": "code.py", "before": "absent", "after": "b", "tests": ["tests"]}, "occurs 0 times"),
        ({"file": "code.py", "before": "1", "after": "2", "tests": ["tests"]}, "occurs 2 times"),
        ({"file": "code.py", "before": "x", "after": "x", "tests": ["tests"]}, "changes nothing"),
        ({"file": "code.py", "before": "x", "after": "y", "tests": ["tests/no.py"]}, "no tests/no.py"),
        ({"file": "code.py", "before": "x", "after": "y", "tests": ["-k", "x"]}, "names no test"),
    ],
)
def test_a_change_that_does_not_fit(change, said, tmp_path):
    (tmp_path / "code.py").write_text("x = 1 + 1\n")
    (tmp_path / "tests").mkdir()
    assert said in run.check(change, tmp_path)


@pytest.mark.parametrize("after, expected", [("return 2", True), ("return 1 ", False), ("return (", True)])
def test_a_change_is_noticed_if_a_test_fails(after, expected, tmp_path):
    (tmp_path / "code.py").write_text("def one():\n    return 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_code.py").write_text("import code_under_test\n")
    (tmp_path / "code_under_test.py").write_text("def one():\n    return 1\n")
    (tmp_path / "tests" / "test_code.py").write_text(
        "from code_under_test import one\n\n\ndef test_one():\n    assert one() == 1\n"
    )
    (tmp_path / "conftest.py").write_text("")
    change = {"file": "code_under_test.py", "before": "return 1", "after": after, "tests": ["tests/test_code.py"]}
    assert run.noticed(change, tmp_path) is expected
    assert (tmp_path / "code_under_test.py").read_text() == "def one():\n    return 1\n"


def test_workers_do_not_see_the_changes_of_each_other(monkeypatch):
    def copy(destination):
        destination.mkdir()
        (destination / "code.py").write_text("old")

    def noticed(change, root):
        assert (root / "code.py").read_text() == "old"  # no other worker is in this copy
        (root / "code.py").write_text(change["after"])
        time.sleep(0.01)
        (root / "code.py").write_text("old")
        return change["after"] != "3"

    monkeypatch.setattr(run, "copy", copy)
    monkeypatch.setattr(run, "noticed", noticed)
    tried = list(run.tried([{"after": str(number)} for number in range(8)], workers=3))
    assert sorted((change["after"], seen) for change, seen, _ in tried) == [(str(n), n != 3) for n in range(8)]
