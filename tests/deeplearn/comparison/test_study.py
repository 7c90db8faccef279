import pytest

from deeplearn.comparison import study
from deeplearn.errors import UserError

FIELDS = {"workloads": {"small": {"experiment": "digits_mlp", "epochs": 2.0}}, "optimizers": ["adam", "lion"]}


def make(**fields):
    return study.make(**{**FIELDS, **fields})


def test_workloads_change_their_experiments():
    made = make(workloads={"digits_mlp": {}, "wide": {"experiment": "digits_mlp", "features": [512]}})
    assert [w.name for w in made.workloads] == ["digits_mlp", "wide"]
    assert made.workloads[0].config.features == (128, 128) and made.workloads[1].config.features == (512,)
    assert study.make(workloads=["digits_mlp"]).workloads[0].name == "digits_mlp"


def test_points():
    """As many for each optimizer, within the study's own space."""
    made = make(points=4, spaces={"adam": {"b1": (0.5, 0.6)}})
    found = {name: study.search(made, name, 0) for name in made.optimizers}
    assert [len(points) for points in found.values()] == [4, 4]
    assert all(0.5 <= point["b1"] <= 0.6 for point in found["adam"])
    assert len(study.search(make(learning_rates=3), "adam", 0)) == 3
    assert study.search(make(learning_rates=[0.1, 0.2]), "lion", 0) == [{"learning_rate": 0.1}, {"learning_rate": 0.2}]


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"sedes": 3}, "unknown study field 'sedes'; did you mean seeds"),
        ({"workloads": {}}, "has no workloads"),
        ({"workloads": {"digits_mpl": {}}}, "unknown experiment 'digits_mpl'; did you mean digits_mlp"),
        (
            {"workloads": {"digits_mlp": {"epoch": 1.0}}},
            "unknown config field of digits_mlp 'epoch'; did you mean epochs",
        ),
        ({"workloads": {"digits_mlp": {"epochs": "many"}}}, "digits_mlp: config.epochs is 'many'; it must be a finite"),
        ({"optimizers": []}, "has no optimizers"),
        ({"optimizers": ["adma"]}, "unknown optimizer 'adma'"),
        ({"spaces": {"muon": {}}}, "unknown optimizer in the study's spaces 'muon'"),
        ({"spaces": {"adam": {"b1": (0.9, 0.5)}}}, "the space of adam's b1 is empty"),
        ({"points": 0}, "points is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"reruns": -1}, "reruns is -1"),
        ({"learning_rates": 0}, "neither a number of rates nor rates above 0"),
        ({"learning_rates": [0.1, -1.0]}, "neither a number of rates nor rates above 0"),
        ({"lanes": 0}, "lanes is 0"),
        (
            {"workloads": ["digits_mlp", "mine/digits_mlp.py"]},
            "the workloads digits_mlp, mine/digits_mlp.py have one name",
        ),
    ],
)
def test_mistakes(fields, said):
    with pytest.raises(UserError, match=said) as raised:
        make(**fields)
    assert "\n" not in str(raised.value)


def test_files(tmp_path):
    (tmp_path / "mine.py").write_text("def get_study():\n    return {'workloads': ['digits_mlp'], 'points': 3}\n")
    assert study.make(**study.load(str(tmp_path / "mine.py"))).points == 3
    (tmp_path / "other.py").write_text("")
    with pytest.raises(UserError, match="has no function get_study"):
        study.load(str(tmp_path / "other.py"))
    with pytest.raises(UserError, match="unknown study 'two_core'; did you mean two_cores"):
        study.load("two_core")
    with pytest.raises(UserError, match="there is no file .*nothing.py"):
        study.load(str(tmp_path / "nothing.py"))


@pytest.mark.parametrize("file", sorted(study.HOME.glob("[a-z]*.py")), ids=lambda file: file.stem)
def test_the_studies_that_come_along(file):
    """Each is whole: its workloads have targets, and every optimizer has a space."""
    made = study.make(**study.load(str(file)))
    assert all(workload.config.target for workload in made.workloads)
    assert {len(study.search(made, name, 0)) for name in made.optimizers} == {made.points or made.learning_rates}


@pytest.mark.parametrize(
    "name",
    [
        "../up",
        "a/b",
        "/root",
        "..",
        ".",
        "",
        ".hidden",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 101,
        "runs",
        "source",
        "table.md",
    ],
)
def test_a_workload_stays_in_the_directory(name):
    with pytest.raises(UserError, match="cannot be a workload's name") as raised:
        make(workloads={name: {"experiment": "digits_mlp"}})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["digits_mlp", "width 64", "lr=0.1", "größe", "a.b", "v2..3"])
def test_names_that_are_allowed(name):
    assert make(workloads={name: {"experiment": "digits_mlp"}}).workloads[0].name == name
