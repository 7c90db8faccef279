"""Studies that are killed, that grow or that lose files: the runs keep their bits."""

import json
import shutil

import jax
import numpy as np
import pytest

from deeplearn.comparison import plans, protocol, store
from deeplearn.errors import UserError
from tests.deeplearn.comparison.test_protocol import build

NAME = "momentum"
POINTS = [{"learning_rate": rate} for rate in (1e-5, 0.03, 0.1)]
SEEDS = range(6)  # 18 runs, of which 8 train in one program: three slices, the last with two runs
LANES = 8


class Killed(Exception):
    """Stands for a signal that ends the process."""


def run(directory, points=POINTS, seeds=SEEDS, reruns=3, progress=lambda live: None, together=None, **kwargs):
    kwargs = {"lanes": LANES, **kwargs}
    return protocol.run(directory, NAME, build(optimizer=NAME), points, seeds, reruns, progress, together, **kwargs)


def contents(directory):
    """{file: record} without what a clock measured."""
    files = sorted((directory / NAME).glob("*-*.json"))
    records = {file.name: json.loads(file.read_text())["run"] for file in files}
    clocks = ("seconds", "compile_seconds")
    return {name: {key: x for key, x in run.items() if key not in clocks} for name, run in records.items()}


def assert_same_bits(result, expected):
    for phase in ("tuned", "final"):
        ours, theirs = getattr(result, phase), getattr(expected, phase)
        assert ours.curves.keys() == theirs.curves.keys() and ours.test.keys() == theirs.test.keys()
        for name, values in theirs.curves.items():
            np.testing.assert_array_equal(ours.curves[name], values)
        for name, values in theirs.test.items():
            np.testing.assert_array_equal(ours.test[name], values)


@pytest.fixture(scope="module", params=[True, False], ids=["side by side", "one after another"])
def unbroken(request, tmp_path_factory):
    """A study that nothing interrupts: its directory, its result and the way its runs share a device."""
    directory = tmp_path_factory.mktemp("unbroken")
    result, works = run(directory, together=request.param)
    assert [work.runs for work in works] == [18, 3] and {work.plan.together for work in works} == {request.param}
    return directory, result, request.param


@pytest.fixture
def copy(unbroken, tmp_path):
    shutil.copytree(unbroken[0] / NAME, tmp_path / NAME)
    return tmp_path


def after(count, function=lambda *args: None):
    """`function`, which a kill ends at its call number `count` + 1."""
    calls = iter(range(count))

    def counted(*args, **kwargs):
        if next(calls, None) is None:
            raise Killed
        return function(*args, **kwargs)

    return counted


def test_a_study_has_its_bits_after_any_kill(unbroken, tmp_path, monkeypatch):
    """Killed once while a slice trains, and in each phase while records are written; and nothing is trained twice."""
    _, expected, together = unbroken
    with pytest.raises(Killed):
        run(tmp_path, progress=after(3), together=together)  # in the second slice
    assert len(contents(tmp_path)) == 8
    write = store.checked.write
    for written, total in ((3, 11), (8, 19)):  # within the second slice; after the third and the plan of the finals
        with monkeypatch.context() as patch:
            patch.setattr(store.checked, "write", after(written, write))
            with pytest.raises(Killed):
                run(tmp_path, together=together)
        assert len(contents(tmp_path)) == total - (total == 19)
    result, works = run(tmp_path)  # every run has a plan by now
    assert [work.runs for work in works] == [3]
    assert_same_bits(result, expected)
    assert contents(tmp_path) == contents(unbroken[0])
    assert plans.read(tmp_path, NAME) == plans.read(unbroken[0], NAME)


def test_two_fresh_directories_have_the_same_bits(tmp_path):
    """The rule decides: neither time nor the memory that is free."""
    (first, works), (second, _) = (run(tmp_path / name, seeds=[0, 1], reruns=0, lanes=None) for name in ("a", "b"))
    assert_same_bits(first, second)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and works[0].plan.lanes == 8


def test_a_study_that_grows_keeps_its_runs_and_plans(copy, unbroken):
    """By a point and a seed, which form an entry of their own."""
    _, expected, together = unbroken
    before, files = contents(copy), {file: file.read_bytes() for file in (copy / NAME).glob("*-*.json")}
    old = plans.read(copy, NAME)
    more = [*POINTS, {"learning_rate": 1e-6}]
    result, works = run(copy, points=more, seeds=range(7))
    assert works[0].runs == 4 * 7 - 18
    assert {file: file.read_bytes() for file in files} == files and before.items() <= contents(copy).items()
    new = plans.read(copy, NAME)
    assert new["tune"][0] == old["tune"][0] and len(new["tune"]) == 2 and new["final"] == old["final"]
    assert new["tune"][1].runs == tuple((p, s) for p in more for s in range(7) if p == more[3] or s == 6)
    assert_same_bits(result._replace(tuned=expected.tuned), expected)


def test_lost_records_come_back_to_the_bit(copy, unbroken):
    """Those of the filled up slice too, though the study asks for fewer points now."""
    files = sorted((copy / NAME).glob("tune-*-[05].json"))
    for file in files:
        file.unlink()
    run(copy, points=POINTS[2:], reruns=0)
    assert contents(copy).items() <= contents(unbroken[0]).items()
    result, _ = run(copy)
    assert_same_bits(result, unbroken[1])
    assert contents(copy) == contents(unbroken[0])


def test_a_lost_plan_is_made_anew_only_if_it_is_the_same(copy, unbroken):
    """Each record has the digest of its plan."""
    file = plans.path(copy, NAME)
    stored = plans.read(copy, NAME)
    file.write_text("{}")
    lost = sorted((copy / NAME).glob("tune-*-0.json"))[0]
    lost.unlink()
    with pytest.raises(UserError, match="plan.json is damaged; restore it, or delete it"):
        run(copy)
    file.unlink()
    if unbroken[2]:  # by rule the lanes go side by side
        result, works = run(copy)
        assert_same_bits(result, unbroken[1])
        assert plans.read(copy, NAME) == {**stored, "final": []} and [work.runs for work in works] == [1]
        file.unlink()
        lost.unlink()
    with pytest.raises(UserError, match="lacks the plan of finished runs, and a new plan .* is not theirs") as raised:
        run(copy, lanes=2 * LANES)
    assert "\n" not in str(raised.value) and not lost.exists() and not file.exists()
    _, works = run(copy, lanes=2 * LANES, replan=True)
    assert [work.runs for work in works] == [1]
    assert lost.exists() and [len(entry.runs) for entry in plans.read(copy, NAME)["tune"]] == [1]


def test_a_plan_for_other_devices(copy):
    """Refused in one line where runs are missing; planned anew on request, which leaves the others alone."""
    stored = plans.read(copy, NAME)
    other = stored["tune"][0]._replace(lanes=6, devices=3)
    plans.write(copy, NAME, {**stored, "tune": [other]})
    run(copy)  # nothing is missing
    lost = sorted((copy / NAME).glob("tune-*-0.json"))[0]
    lost.unlink()
    with pytest.raises(UserError, match=f"has a plan for 3 devices, and there are {jax.device_count()} here"):
        run(copy)
    _, works = run(copy, replan=True)
    assert [work.runs for work in works] == [1] and lost.exists()
    (first, second) = plans.read(copy, NAME)["tune"]
    assert first == other and second.devices == jax.device_count() and len(second.runs) == 1
    lost.unlink()
    assert [work.runs for work in run(copy)[1]] == [1]  # by the new entry


def test_a_record_that_cannot_be_used_shows_before_the_training(copy):
    records = sorted((copy / NAME).glob("tune-*.json"))
    records[0].unlink()
    records[1].write_bytes(records[2].read_bytes())
    lives = []
    with pytest.raises(
        UserError, match=f"{records[1].name} holds the run of 'momentum' with .*, not of 'momentum' with"
    ):
        run(copy, progress=lives.append)
    assert lives == [] and not records[0].exists()


def test_identities_of_a_study(tmp_path):
    """Records of this identity are accepted always; a study without one has None."""
    few = {"points": POINTS[1:2], "seeds": [0], "reruns": 0}
    run(tmp_path, **few, identity="abc", accepted=["older"])
    target = build().target
    arguments = (tmp_path, NAME, POINTS[1:2], [0], 0, target)
    assert protocol.stored(*arguments, accepted={"abc"}).winner == POINTS[1]
    assert protocol.stored(*arguments).winner == POINTS[1]
    with pytest.raises(UserError, match="has the identity abc, which is not this study's"):
        protocol.stored(*arguments, accepted={"def", None})
    with pytest.raises(UserError, match="has the identity abc, which is not this study's"):
        run(tmp_path, **few, identity="def", accepted=["ghi"])
    run(tmp_path, **few, identity="def", accepted=["abc"])
