"""Every optimizer of the table trains and can be vmapped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from deeplearn import optimizers
from deeplearn.optimizers import OPTIMIZERS, Range

IMAGES, LABELS = (np.asarray(x[:256]) for x in load_digits(return_X_y=True))
IMAGES, LABELS = jnp.asarray(IMAGES / 8 - 1, jnp.float32), jnp.asarray(LABELS, jnp.int32)


# These programs run for milliseconds: what takes time is to compile them.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def init(seed):
    kernel = np.random.default_rng(seed).normal(size=(64, 10)) / 8
    return {"output": {"kernel": jnp.float32(kernel), "bias": jnp.zeros(10)}}


def loss(params, images, labels):
    logits = images @ params["output"]["kernel"] + params["output"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def trainer(name):
    """`(params, learning_rate, steps) -> (params, evaluated params, loss)` in batches of 64, or the optimizer's.

    The loss of step 0 is constant: an optimizer has to live through a gradient of zero.
    """
    optimizer = optimizers.make(name)
    size = {None: 64, 1: 1, "full": 256}[optimizer.batch_size]

    def train(params, learning_rate, steps):
        def step(i, carry):
            params, state = carry
            rows = (jnp.arange(size, dtype=jnp.int32) + i * size) % 256

            def value_fn(params):
                return loss(params, IMAGES[rows], LABELS[rows]) * jnp.where(i == 0, 0.0, 1.0)

            grad_fn = jax.grad(value_fn)
            updates, state = optimizer.update(
                grad_fn(params), state, params, value=value_fn(params), value_fn=value_fn, grad_fn=grad_fn
            )
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params, {"learning_rate": learning_rate})
        params, state = jax.lax.fori_loop(0, steps, step, (params, state))
        evaluated = optimizer.evaluation_params(state, params)
        return params, evaluated, loss(evaluated, IMAGES, LABELS)

    return train


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_from_its_default_rate_and_alike_in_a_vmap(name):
    train = trainer(name)
    rate = OPTIMIZERS[name].learning_rate
    lanes = [init(0), init(1), init(0)]
    params = jax.tree.map(lambda *x: jnp.stack(x), *lanes)
    rates = jnp.array([1.0, 1.0, 0.5], jnp.float32) * rate
    many = jit(jax.vmap(train, (0, 0, None)))

    steps = 1000 if OPTIMIZERS[name].batch_size == 1 else 300
    start, end = many(params, rates, 0)[2], many(params, rates, steps)[2]
    assert np.all(end[:2] < 0.3 * start[:2]), (start, end)

    # A few steps only: the effect of rounding may grow from step to step.
    few, alone = many(params, rates, 6), jit(train)(lanes[2], rates[2], 6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[2], y, rtol=2e-3, atol=2e-5), few, alone)
    assert few[2][0] != few[2][2] or name in ("lbfgs", "polyak"), "the rate has no effect"


@pytest.mark.parametrize("name, entry", OPTIMIZERS.items())
def test_entries_are_consistent(name, entry):
    assert entry.summary and entry.source
    hyperparameters = {"learning_rate": entry.learning_rate, **entry.hyperparameters}
    assert all(type(value) in (float, int, bool, str) for value in hyperparameters.values())
    assert "learning_rate" in entry.space
    for key, space in entry.space.items():
        assert type(hyperparameters[key]) is float, f"{key} is no leaf: no sweep can vary it"
        assert space.low <= hyperparameters[key] <= space.high or hyperparameters[key] == 0
    text = f"{name}({', '.join(f'{key}={value!r}' for key, value in hyperparameters.items())})"
    assert optimizers.parse(text) == (name, hyperparameters)


@pytest.mark.parametrize("name, low, high", [("prodigy", 0.1, 10.0), ("dowg", 0.1, 10.0), ("yogi", 1e-2 / 30, 0.3)])
def test_rates_are_searched_about_the_default_or_as_the_entry_says(name, low, high):
    space = OPTIMIZERS[name].space["learning_rate"]
    assert (space.low, space.high, space.scale) == (pytest.approx(low), pytest.approx(high), "log")


@pytest.mark.parametrize("scale, middle", [("linear", 0.5), ("log", 0.09**0.5), ("reverse_log", 1 - 0.09**0.5)])
def test_a_range_is_even_on_its_scale(scale, middle):
    space = Range(0.1, 0.9, scale)
    np.testing.assert_allclose([space.at(0.0), space.at(0.5), space.at(1.0)], [0.1, middle, 0.9])
