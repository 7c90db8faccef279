"""The embedded experiment, for real: every optimizer, every schedule, both precisions."""

import jax
import jax.numpy as jnp
import pytest

from deeplearn import experiment, optimizers, schedules
from deeplearn.data import datasets
from deeplearn.training import program

load = datasets.load  # before the other tests' small data takes its place

# Epochs enough to reach 90 % on the test split: those that take the whole set at a time make one step an epoch.
EPOCHS = {"sgd": 5.0, "gradient_descent": 150.0, "rprop": 60.0, "lbfgs": 40.0}


@pytest.fixture(autouse=True)
def real_data(monkeypatch, small_data, tmp_path_factory):
    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))


def train(**fields):
    """The trained state and the test metrics of digits_mlp."""
    module = experiment.load("digits_mlp")
    config = module.get_config()
    config.update({"mesh": "data:1", "eval_every": 100_000, "log_every": 100_000, **fields})
    e = module.build(config)
    compiled = program.build(e)
    state, found = compiled.chunk(compiled.init(), compiled.feed.data(0, e.steps), e.steps)
    assert jnp.isfinite(found["loss"])
    return state, compiled.evaluate(state, "test")


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_every_optimizer_trains(name):
    _, values = train(optimizer=name, epochs=EPOCHS.get(name, 12.0))
    assert values["accuracy"] > 0.9


def test_bias_correction_off():
    assert train(optimizer="adamw(bias_correction=False)", epochs=12.0)[1]["accuracy"] > 0.9


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_every_schedule_trains(name):
    state, values = train(schedule=name, epochs=12.0)
    assert values["accuracy"] > 0.9
    assert 0 <= optimizers.current_learning_rate(state.opt_state) <= 1e-3 * (1 + 1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bfloat16"},
        {"remat": "dots"},
        {"accumulate": 4},
        {"ema": 0.99},
        {"clip_norm": 1.0},
        {"dropout": 0.2},
        {"l1": 1e-5, "l2": 1e-4},
        {"weight_decay": 0.1},
        {"max_norm": 2.0},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_every_regularizer_trains(fields):
    state, values = train(**fields, epochs=12.0)
    assert values["accuracy"] > 0.9
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    if "max_norm" in fields:
        kernels = [w for w in jax.tree.leaves(state.params) if w.ndim == 2]
        assert max(float(jnp.sqrt(jnp.square(w).sum(axis=0)).max()) for w in kernels) <= 2 * (1 + 1e-5)


def test_bfloat16_computes_in_bfloat16():
    module = experiment.load("digits_mlp")
    config = module.get_config()
    config.precision = "bfloat16"
    e = module.build(config)
    params, model_state = jax.eval_shape(e.task.init, jax.random.key(0))
    batch = {name: jax.ShapeDtypeStruct((4, *x.shape), x.dtype) for name, x in e.data.spec.items()}
    text = str(jax.make_jaxpr(e.task.loss)(params, model_state, batch, jax.random.key(0)))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("bf16" in line for line in products)


def test_the_same_seed_gives_the_same_bits():
    a, b, c = (train(seed=seed, epochs=2.0, dropout=0.1)[0].params for seed in (0, 0, 1))
    equal = lambda a, b: all((x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
    assert equal(a, b) and not equal(a, c)
