"""Every field of every experiment: what it may hold is in a table, and what makes no sense is one line."""

import math

import pytest

from deeplearn import config as configs
from deeplearn import experiment
from deeplearn.errors import UserError
from deeplearn.fields import Field, fits
from tests.experiments.conftest import EXPERIMENTS

NUMBERS = (math.nan, math.inf, -math.inf, 10**400, -(10**5000), True, "3", (3,), None)
OTHERS = {int: (*NUMBERS, 1.5), float: NUMBERS, bool: (0, 1, "True", None), str: (3, True, ("a",), None)}


def senseless(field: Field):
    """Values that a field may not hold: other kinds, beyond each end, and the ends themselves where they are open."""
    one = field._replace(many=False)
    beyond = [1e-9 if field.kind is float else 1]
    found = [value for value in OTHERS[field.kind] if not (value is None and field.unset)]
    found += [one.low - x for x in beyond if math.isfinite(one.low)] + [one.low] * one.above
    found += [one.high + x for x in beyond if math.isfinite(one.high)] + [one.high] * one.below
    found += ["no such choice", ""] if field.choices else []
    return [8, "8", None, *((value,) for value in found if value != (3,))] if field.many else found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_field_has_a_rule(name):
    """And its default keeps it."""
    module = experiment.load(name)
    table, config = {**configs.FIELDS, **experiment.fields_of(module)}, module.get_config()
    assert [field for field in config if field not in table] == []
    assert [field for field, value in config.items() if not fits(value, table[field])] == []
    experiment.check(module, config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_makes_no_sense_is_one_line(name):
    own = experiment.fields_of(experiment.load(name))
    for field, rule in {**configs.FIELDS, **own}.items():
        for value in senseless(rule):
            with pytest.raises(UserError) as raised:
                configs.check_field(field, value, own)
            line = str(raised.value)
            assert field in line and "\n" not in line and len(line) < 300, (field, line)


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("digits_mlp", {"dropout": 1.5}, "digits_mlp: config.dropout is 1.5; it must be in [0, 1)"),
        ("digits_mlp", {"dropout": -0.5}, "config.dropout is -0.5; it must be in [0, 1)"),
        ("digits_mlp", {"dropout": 20}, "config.dropout is 20; it must be in [0, 1)"),
        ("digits_mlp", {"epochs": math.nan}, "config.epochs is nan; it must be a finite number, at least 0"),
        ("digits_mlp", {"epochs": True}, "config.epochs is True; it must be a finite number"),
        ("digits_mlp", {"epochs": 10**400}, "config.epochs is 1000"),
        ("digits_mlp", {"epochs": 0.0}, "config.epochs is 0.0; it must be above 0, or config.steps must be"),
        ("digits_mlp", {"features": [128, 0]}, "config.features is [128, 0]; it must be a list, each of it a whole"),
        ("digits_mlp", {"features": (1.5, "a")}, "config.features is (1.5, 'a'); it must be a list, each of it"),
        ("digits_mlp", {"batch_size": 2.5}, "config.batch_size is 2.5; it must be a whole number"),
        ("digits_mlp", {"seed": 2**32}, "config.seed is 4294967296; it must be at most 4294967295"),
        ("digits_mlp", {"seed": -1}, "config.seed is -1; it must be at least 0"),
        ("digits_mlp", {"learning_rate": 0.0}, "config.learning_rate is 0.0; it must be above 0"),
        ("digits_mlp", {"accumulate": 3}, "config.accumulate is 3; it must divide the batch size, 64"),
        ("digits_mlp", {"zero": 1}, "config.zero is 1; it must be True or False"),
        ("digits_mlp", {"steps": 2**31}, "config.steps is 2147483648; it must be at most 2147483647 (0: the epochs"),
        ("digits_mlp", {"dropuot": 0.1}, "unknown config field of digits_mlp 'dropuot'; did you mean dropout?"),
        ("cifar10_cnn", {"batch_norm": "no"}, "config.batch_norm is 'no'; it must be True or False"),
        ("cifar10_transformer", {"patch": 0}, "config.patch is 0; it must be at least 1"),
        ("cifar10_transformer", {"width": 10**9}, "config.width is 1000000000; it must be at most 1048576"),
        ("shakespeare_rnn", {"cell": "ltsm"}, "unknown cell 'ltsm'; did you mean lstm?"),
        ("shakespeare_rnn", {"layers": 10**6}, "config.layers is 1000000; it must be at most 10000"),
        (
            "shakespeare_gpt",
            {"positions": "absolute"},
            "unknown positions 'absolute'; there are: alibi, learned, rotary",
        ),
        ("shakespeare_gpt", {"norm": 2}, "config.norm is 2; it must be a text"),
        ("gpt3", {"size": "125"}, "unknown size '125'; did you mean 125m"),
        ("gpt3", {"batch_size": -1}, "config.batch_size is -1; it must be at least 0 (0: the table's)"),
        ("gpt3", {"learning_rate": 0.0}, "config.learning_rate is 0.0; it must be above 0"),
    ],
)
def test_configure_refuses(name, changes, said):
    with pytest.raises(UserError) as raised:
        experiment.configure(name, changes)
    assert said in str(raised.value) and "\n" not in str(raised.value)


OWN = """
from deeplearn import fields
from deeplearn.config import base_config

FIELDS = {"depth": fields.Field(str, choices=("shallow", "deep")), "batch_size": fields.Field(int, 8, 16)}


def get_config():
    return base_config(batch_size=8, depth="deep", width=0.5, dropout=0.1, mine=1.0)


def build(config):
    pass
"""


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, None),
        ({"depth": "shallow", "batch_size": 16, "width": -3.0}, None),
        ({"depth": "shalow"}, "unknown depth 'shalow'; did you mean shallow?"),
        ({"batch_size": 64}, "config.batch_size is 64; it must be at most 16"),
        ({"dropout": 2.0}, "config.dropout is 2.0; it must be in"),
        ({"mine": math.inf}, "config.mine is inf; it must be a finite number"),
    ],
)
def test_an_experiment_has_a_table_of_its_own(tmp_path, changes, said):
    """A shared name whose default is something else, as a width of 0.5, has no rule unless the table has it."""
    (tmp_path / "mine.py").write_text(OWN)
    if said is None:
        assert experiment.configure(str(tmp_path / "mine.py"), changes)
        return
    with pytest.raises(UserError) as raised:
        experiment.configure(str(tmp_path / "mine.py"), changes)
    assert said in str(raised.value)


def test_a_table_with_a_name_that_the_config_lacks(tmp_path):
    (tmp_path / "mine.py").write_text(OWN.replace('"depth": fields', '"dept": fields'))
    with pytest.raises(UserError, match="unknown field in FIELDS of mine 'dept'; did you mean depth"):
        experiment.configure(str(tmp_path / "mine.py"), {})
