import pytest

from deeplearn import config as configs
from deeplearn import fields
from deeplearn.errors import UserError


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("batch_size", 0, "config.batch_size is 0"),
        ("accumulate", 0, "config.accumulate is 0"),
        ("log_every", -1, "config.log_every is -1"),
        ("steps", -5, "config.steps is -5"),
        ("patience", -1, "config.patience is -1"),
        ("clip_norm", -1.0, "config.clip_norm is -1.0"),
        ("epochs", 0.0, "config.epochs is 0.0"),
        ("ema", 1.0, "config.ema is 1.0"),
        ("accumulate", 3, "must divide the batch size, 64"),
        ("precision", "float16", "unknown precision 'float16'"),
    ],
)
def test_numbers_that_make_no_sense(field, value, said):
    config = configs.base_config()
    config[field] = value
    with pytest.raises(UserError, match=said):
        configs.check(config)


def test_defaults_pass():
    configs.check(configs.base_config())


def test_every_field_has_a_rule_and_every_rule_a_field():
    assert configs.FIELDS.keys() == set(configs.base_config()) and not configs.FIELDS.keys() & configs.SHARED.keys()


def test_a_value_without_a_rule_is_finite():
    """However deep it lies."""
    configs.check(configs.base_config(mine={"a": [1.0, "b"]}))
    with pytest.raises(UserError, match="config.mine is nan; it must be a finite number"):
        configs.check(configs.base_config(mine={"a": (1.0, float("nan"))}))


def test_an_experiments_own_rule_replaces_the_common_one():
    """As where a batch size of 0 means the model's own."""
    config = configs.base_config(batch_size=0)
    configs.check(config, {"batch_size": fields.OPTIONAL_COUNT})
    with pytest.raises(UserError, match="config.batch_size is 0"):
        configs.check(config, {"seed": fields.SEED})


def test_fields_replace_and_extend():
    config = configs.base_config(batch_size=8, hidden=3)
    assert (config.batch_size, config.hidden, config.seed) == (8, 3, 0)
