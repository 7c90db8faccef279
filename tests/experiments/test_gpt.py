"""The language models: their sizes are the papers', and the recipes follow from the size."""

import jax
import pytest

from deeplearn import experiment
from deeplearn.errors import UserError
from deeplearn.training import program
from tests.experiments.conftest import build


def count(e) -> int:
    params, _ = jax.eval_shape(e.task.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def full(name, **fields):
    """The experiment as it is, on little data."""
    module = experiment.load(name)
    config = module.get_config()
    config.update(fields)
    return module.build(config)


def test_gpt2_has_124_million_parameters():
    assert count(full("gpt2")) == 124_439_808 + 47 * 768  # of which rows of the table for no token


@pytest.mark.parametrize("size", experiment.load("gpt3").SIZES)
def test_the_sizes_of_gpt3(size):
    """Within what the table rounds, two digits of parameters and one of tokens."""
    e, row = full("gpt3", size=size), experiment.load("gpt3").SIZES[size]
    assert count(e) == pytest.approx(row.parameters, rel=0.02)
    assert e.config.batch_size * 2048 == pytest.approx(row.batch, rel=0.05)
    assert e.config.learning_rate == row.learning_rate
    assert e.steps * e.config.batch_size * 2048 == pytest.approx(300e9, rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt3"])
def test_eight_devices_divide_the_parts_of_a_batch(name):
    config = full(name).config
    assert config.batch_size % (8 * config.accumulate) == 0


def test_long_examples_are_a_batch_too():
    """Of few tokens the table's batch is none: the least is 128 examples."""
    assert full("gpt3", length=2**14).config.batch_size == 128


def test_flags_replace_the_tables_numbers():
    e = full("gpt3", learning_rate=0.01, batch_size=32, steps=7)
    assert (e.config.learning_rate, e.batch_size, e.steps) == (0.01, 32, 7)


def test_a_size_that_there_is_not():
    with pytest.raises(UserError, match="unknown size '125'.*125m"):
        full("gpt3", size="125")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "remat": "full"},
        {"positions": "alibi", "dropout": 0.1, "precision": "bfloat16", "accumulate": 2},
    ],
    ids=str,
)
def test_the_loss_falls(fields):
    e = build("shakespeare_gpt", mesh="data:1", width=32, depth=2, batch_size=8, steps=20, log_every=1, **fields)
    compiled = program.build(e)
    state, found = compiled.init(), []
    for step in range(20):
        state, metrics = compiled.chunk(state, compiled.feed.data(step, 1), 1)
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0] - 0.01
    assert 3 < float(compiled.evaluate(state, "validation")["loss"]) < 5
