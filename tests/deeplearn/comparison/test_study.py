import pytest

from deeplearn import config as configs
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
    assert all(0.5 <= point["b1"] <= 0.6 for point in study.search(made, "adam(b2=0.9)", 0))  # settings or not
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
        ({"points": 0}, "points is 0; it must be at least 1"),
        ({"points": 10**9}, "points is 1000000000; it must be at most 10000"),
        ({"points": 2.0}, "points is 2.0; it must be a whole number from 1 to 10000, or None"),
        ({"reruns": 10**9}, "reruns is 1000000000; it must be at most 10000"),
        ({"seeds": None}, "seeds is None; it must be a whole number"),
        ({"together": "yes"}, "together is 'yes'; it must be True or False, or None"),
        ({"lanes": True}, "lanes is True; it must be a whole number"),
        ({"learning_rates": 10**9}, "learning_rates is 1000000000; it must be at most 10000"),
        ({"workloads": {"digits_mlp": {"dropout": 1.5}}}, "digits_mlp: config.dropout is 1.5; it must be in"),
        ({"workloads": {"digits_mlp": {"seed": 2**32}}}, "config.seed is 4294967296; it must be at most 4294967295"),
        ({"workloads": {"digits_mlp": {"seed": 2**32 - 10_004}}}, "config.seed is .*; it must be at most 4294957291"),
        ({"workloads": {"digits_mlp": {"seed": 2**32 - 2}}, "reruns": 0}, "config.seed is .* at most 4294967293"),
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


def test_the_largest_seeds():
    """The last of the reruns, or of the tuning seeds, is the last of 32 bits."""
    for fields in ({"seed": 2**32 - 10_005}, {"seed": 2**32 - 3}):
        made = make(workloads={"digits_mlp": fields}, reruns=5 if fields["seed"] < 2**32 - 10_000 else 0)
        assert study.seeds(made, made.workloads[0])[0] == fields["seed"]


IGNORED = {
    "optimizer": ("lion", "name it among the study's optimizers"),
    "learning_rate": (0.5, "give the study's learning_rates"),
    "log_every": (10, "set config.eval_every"),
    "checkpoint_every": (10, "no checkpoints"),
    "patience": (3, "set config.steps or config.epochs"),
    "mesh": ("data:2", "each run has one device"),
    "placement": ("embed=data", "each run has one device"),
    "zero": (True, "each run has one device"),
}


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("workload", ["digits_mlp", "shakespeare_rnn"])  # whose learning rate is its own
def test_a_field_that_a_comparison_ignores(workload, name):
    value, remedy = IGNORED[name]
    with pytest.raises(UserError) as raised:
        make(workloads={workload: {name: value}})
    line = f"{workload}: config.{name} is {value!r}, and a comparison ignores it; "
    assert str(raised.value).startswith(line) and remedy in str(raised.value) and "\n" not in str(raised.value)
    default = make(workloads={workload: {}}).workloads[0].config[name]
    assert make(workloads={workload: {name: default}})  # which is not to set it
    assert make(workloads={workload: {name: value}}, resumed=True)  # which older studies may have


def test_every_field_is_used_ignored_or_refused():
    """A field that config.FIELDS gains has to be looked at here."""
    used = {"seed", "schedule", "weight_decay", "batch_size", "epochs", "steps", "accumulate", "eval_every"}
    used |= {"eval_batch_size", "target", "precision", "clip_norm", "l1", "l2", "max_norm", "ema", "remat"}
    assert used | study.UNUSED.keys() == configs.FIELDS.keys() and set(IGNORED) == study.UNUSED.keys()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"optimizers": ["adam", "adamw"]}, None),
        ({"optimizers": ["adam"], "points": 3}, None),
        ({"optimizers": ["adam", "adamw"], "points": 3}, "config.weight_decay is 0.5, and adamw ignores it"),
        (
            {"optimizers": ["adamw(weight_decay=0.1)"]},
            r"and adamw\(weight_decay=0.1\) ignores it; set it in the brackets",
        ),
    ],
)
def test_a_weight_decay_that_an_optimizer_ignores(fields, said):
    workloads = {"digits_mlp": {"weight_decay": 0.5}}
    if said is None:
        assert make(workloads=workloads, **fields)
        return
    with pytest.raises(UserError, match=said):
        make(workloads=workloads, **fields)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"points": 4, "learning_rates": [0.1]}, "has points and learning_rates; points search the rate too"),
        ({"points": 4, "learning_rates": 16}, "has points and learning_rates"),
        ({"spaces": {"adam": {"b1": (0.5, 0.9)}}}, "space of adam's b1 is ignored without points; give points"),
        (
            {"spaces": {"adam": {"learning_rate": (0.1, 0.9)}}, "learning_rates": [0.1]},
            "space of adam's learning_rate is",
        ),
        ({"spaces": {"adam": {"learning_rate": (0.1, 0.9)}}}, None),
        ({"spaces": {"adam": {"b1": (0.5, 0.9)}}, "points": 4}, None),
    ],
)
def test_fields_of_a_study_that_do_nothing(fields, said):
    if said is None:
        assert make(**fields)
        return
    with pytest.raises(UserError, match=said):
        make(**fields)
    assert make(**fields, resumed=True)


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
