"""Plans alone, without training; test_resuming.py has interrupted studies."""

import json

import jax
import pytest

from deeplearn.comparison import checked, names, plans
from deeplearn.errors import UserError

NAME = "adam(b2=0.9)"
RUNS = tuple(({"learning_rate": rate}, seed) for rate in (0.1, 0.2) for seed in range(10))
COUNT = jax.device_count()
ENTRY = plans.Entry(True, COUNT, COUNT, RUNS)
PLAN = {"tune": [ENTRY, plans.Entry(False, 2 * COUNT, COUNT, (({"learning_rate": 0.3}, 0),))], "final": []}


def content(file):
    return json.loads(file.read_text())["plan"]


def store(directory):
    plans.write(directory, NAME, PLAN)
    return plans.path(directory, NAME)


def test_what_is_written_is_read(tmp_path):
    assert plans.read(tmp_path, NAME) == {"tune": [], "final": []}
    file = store(tmp_path)
    assert file == tmp_path / "adam-b2-0.9" / "plan.json" and plans.read(tmp_path, NAME) == PLAN
    entry = content(file)["tune"][0]
    assert [entry[name] for name in ("together", "lanes", "devices")] == [True, COUNT, COUNT]
    assert entry["runs"][3] == names.path(tmp_path, NAME, "tune", RUNS[3]).stem


def change(**fields):
    """Changes the first entry of a stored plan, and gives the file a right checksum."""

    def damage(file):
        plan = content(file)
        plan["tune"][0] |= fields
        file.write_text(json.dumps({"plan": plan, "checksum": checked.checksum(plan)}))

    return damage


def replace(plan):
    return lambda file: file.write_text(json.dumps({"plan": plan, "checksum": checked.checksum(plan)}))


@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda file: file.write_text(file.read_text()[:100]),
        "changed": lambda file: file.write_text(file.read_text().replace("true", "false", 1)),
        "empty": lambda file: file.write_text(""),
        "not UTF-8": lambda file: file.write_bytes(b"\xff" + file.read_bytes()),
        "an object": lambda file: file.write_text("{}"),
        "null": lambda file: file.write_text("null"),
        "nested": lambda file: file.write_text("[" * 100_000),
        "a plan that is null": replace(None),
        "a plan without phases": replace({"optimizer": NAME}),
        "a phase that is a number": replace({"optimizer": NAME, "tune": 1, "final": []}),
        "an entry that is a list": replace({"optimizer": NAME, "tune": [[]], "final": []}),
        "a text for together": change(together="yes"),
        "no lanes": change(lanes=0),
        "broken lanes": change(lanes=1.5),
        "lanes that the devices do not divide": change(lanes=COUNT + 1, devices=COUNT),
        "no runs": change(runs=[], hyperparameters=[], seeds=[]),
        "fewer seeds than runs": change(seeds=[1]),
        "seeds that are texts": change(seeds=["1"] * 20),
        "points that are numbers": change(hyperparameters=[0.1] * 20),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_plan_is_named(tmp_path, damage):
    file = store(tmp_path)
    damage[1](file)
    with pytest.raises(UserError, match="is damaged; restore it, or delete it and run the same command") as raised:
        plans.read(tmp_path, NAME)
    assert str(raised.value).startswith(str(file)) and "\n" not in str(raised.value)


def test_the_plan_of_another_optimizer(tmp_path):
    """Under another name, or with files that are not those of its runs."""
    file = store(tmp_path)
    other = plans.path(tmp_path, "lion")
    other.parent.mkdir()
    other.write_text(file.read_text())
    with pytest.raises(UserError, match=r"holds the plan of 'adam\(b2=0.9\)', not of 'lion'; put the right file"):
        plans.read(tmp_path, "lion")
    change(runs=content(file)["tune"][0]["runs"][::-1])(file)
    with pytest.raises(UserError, match="holds the plan of"):
        plans.read(tmp_path, NAME)


def test_a_plan_that_cannot_be_read_now(tmp_path):
    file = plans.path(tmp_path, NAME)
    file.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot read .*plan.json: Is a directory; put that right") as raised:
        plans.read(tmp_path, NAME)
    assert "delete" not in str(raised.value)


def test_a_run_belongs_to_the_last_entry_that_has_it():
    again = plans.Entry(False, COUNT, COUNT, RUNS[3:5])
    new = ({"learning_rate": 0.7}, 0)
    by_entry, unplanned = plans.unfinished([ENTRY, again], [RUNS[0], RUNS[3], RUNS[9], new])
    assert by_entry == [[RUNS[0], RUNS[9]], [RUNS[3]]] and unplanned == [new]


def test_slices_that_have_a_missing_run():
    entry = plans.Entry(True, 8, 8, RUNS)
    assert plans.slices(entry, [RUNS[9], RUNS[8], RUNS[17]]) == [1, 2]
    assert plans.length(entry, [1, 2]) == 8 + 4 and plans.length(entry, [0, 1, 2]) == 20


@pytest.mark.parametrize(
    "entry, together, lanes, said",
    [
        (ENTRY, None, None, None),
        (ENTRY, True, COUNT, None),
        (
            ENTRY._replace(lanes=6, devices=3),
            None,
            None,
            f"has a plan for 3 devices, and there are {COUNT} here, .*; use 3",
        ),
        (ENTRY._replace(lanes=1, devices=1), None, None, f"has a plan for 1 device, and there are {COUNT} here"),
        (ENTRY, False, None, f"with {COUNT} lanes, side by side, .*, and one after another would give other bits"),
        (ENTRY, True, 2 * COUNT, f"and side by side, {2 * COUNT} lanes would give other bits; leave that choice out"),
    ],
)
def test_plans_that_cannot_be_kept(tmp_path, entry, together, lanes, said):
    assert plans.differs(entry, together, lanes) == (said is not None)
    if said is None:
        plans.check_entry(tmp_path / "plan.json", entry, together, lanes)
        return
    with pytest.raises(UserError, match=said) as raised:
        plans.check_entry(tmp_path / "plan.json", entry, together, lanes)
    assert (
        "\n" not in str(raised.value)
        and "plan.json" in str(raised.value)
        and "--accept=implementations" in str(raised.value)
    )
