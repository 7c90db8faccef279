"""What trajectories do not show: single steps, evaluation, hyperparameters set in the middle of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplearn import optimizers
from deeplearn.optimizers import algorithms

MATRIX = jnp.array([[3.0, 1.0], [1.0, 2.0]])


def value_fn(params):
    return 0.5 * params["w"] @ MATRIX @ params["w"] + params["w"].sum() ** 4 / 4


grad_fn = jax.grad(value_fn)
START = {"w": jnp.array([1.0, -0.7])}


def close(x, y, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), x, y)


def first(optimizer, grads, params, **extra):
    """The updates of the first step."""
    return jax.jit(lambda: optimizer.update(grads, optimizer.init(params), params, **extra)[0])()


@pytest.mark.parametrize("turn, expected", [(+1, -0.1 * 2), (-1, 0.0), (0, 0.0)])
def test_rprop_grows_while_the_sign_stays_and_rests_when_it_turns(turn, expected):
    rprop = algorithms.rprop(0.1, shrink=0.5, grow=2.0, smallest=0.1, largest=10.0)
    params = {"w": jnp.ones(1)}
    first, state = rprop.update({"w": jnp.array([3.0])}, rprop.init(params), params)
    close(first["w"], [-0.1])
    second, state = rprop.update({"w": jnp.array([5.0 * turn])}, state, params)
    close(second["w"], [expected])
    close(state.sizes["w"], [{+1: 2.0, -1: 0.5, 0: 1.0}[turn]])


def test_schedule_free_evaluates_the_mean_of_the_fast_iterates():
    optimizer = optimizers.make("schedule_free_sgd(b1=0.5)", learning_rate=0.1)
    update = jax.jit(optimizer.update)
    params, state = START, optimizer.init(START)
    fast = [START["w"]]
    for _ in range(5):
        grads = grad_fn(params)
        fast.append(fast[-1] - 0.1 * grads["w"])
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        x = np.mean(fast[1:], axis=0)
        close(optimizer.evaluation_params(state, params)["w"], x)
        close(params["w"], 0.5 * x + 0.5 * fast[-1])
    moved = optimizers.with_hyperparameters(state, {"b1": 0.25})
    _, moved = update(grads, moved, params)
    assert float(moved.inner_state["optimizer"].b1) == 0.25


def test_novograd_and_prodigy_decay_weights_alone():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    corrected = 0.1 * 1e-3 * (1 - 0.999) ** 0.5 / (1 - 0.9)
    for name, rate in (("novograd", 0.1), ("prodigy", corrected), ("dadapt_adamw", corrected)):
        d0 = "(d0=1e-3)" if name != "novograd" else ""
        plain = optimizers.make(name + d0, learning_rate=0.1, weight_decay=0.0)
        without = first(plain, grads, params)
        decaying = optimizers.make(name + d0, learning_rate=0.1, weight_decay=0.5)
        updates = first(decaying, grads, params)
        close(updates["bias"], without["bias"])
        close(updates["kernel"], without["kernel"] - rate * 0.5)
