import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn import metrics, optimizers
from deeplearn.tasks.classification import classification
from deeplearn.training import evaluation, feed
from deeplearn.training.state import create


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.reshape(x.shape[0], -1)))


TASK = classification(Net(), (2, 2, 1), 3)


def images(number):
    key = jax.random.key(number)
    return {"image": 2 + 3 * jax.random.normal(key, (number, 2, 2, 1)), "label": jnp.arange(number) % 3}


@pytest.mark.parametrize("size", [1, 7, 16, 17, 33])
@pytest.mark.parametrize("parts", [1, 8])
def test_every_row_counts_once(size, parts):
    params, model_state = TASK.init(jax.random.key(0))
    arrays = images(size)
    means = evaluation.make_evaluate(TASK, 16, parts)(params, model_state, jax.random.key(1), arrays)
    whole = TASK.evaluate(params, model_state, arrays, jax.random.key(1))
    assert means["loss"].count == size
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), means, whole)


@pytest.mark.parametrize(
    "name, ema, needs", [("adam", 0.0, False), ("adam", 0.9, True), ("schedule_free_sgd", 0.0, True)]
)
def test_which_optimizers_need_a_refresh(name, ema, needs):
    optimizer = optimizers.make(name, ema=ema)
    state = jax.eval_shape(lambda: create(TASK, optimizer, 0))
    assert evaluation.needs_refresh(optimizer, state) == needs
    assert not evaluation.needs_refresh(optimizer, state._replace(model_state={}))


def test_refreshed_statistics_are_those_of_the_data():
    """After 50 batches of momentum 0.9 the running mean is the data's, whatever it was before."""
    optimizer = optimizers.make("schedule_free_sgd")
    state, arrays = create(TASK, optimizer, 0), images(64)
    evaluated = evaluation.make_evaluated(TASK, optimizer, feed.gather(32, 50), 50)
    _, old = evaluated(state, None)
    _, new = jax.jit(evaluated)(state, arrays)
    assert jnp.abs(old["batch_stats"]["BatchNorm_0"]["mean"]).max() == 0
    mean = arrays["image"].reshape(64, 4).mean(axis=0)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], mean, atol=0.25)


def test_evaluation_uses_the_optimizers_own_parameters():
    optimizer = optimizers.make("adam", ema=0.5)
    state = create(TASK, optimizer, 0)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    _, opt_state = optimizer.update(zeros, state.opt_state, state.params)
    moved = jax.tree.map(lambda x: x + 1, state.params)
    params, _ = evaluation.make_evaluated(TASK, optimizer, None, 0)(
        state._replace(params=moved, opt_state=opt_state), None
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, state.params)


class Shifted(nn.Module):
    """A parameter, then batch norm: its mean is the parameter."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1) * 0.0 + self.param("shift", nn.initializers.constant(3.0), (4,))[None]
        x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)
        return nn.Dense(3)(x)


def test_statistics_are_refreshed_with_the_parameters_that_are_evaluated():
    """The averaged ones, not those of the last step."""
    task = classification(Shifted(), (2, 2, 1), 3)
    optimizer = optimizers.make("adam", ema=0.5)
    state = create(task, optimizer, 0)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    _, opt_state = optimizer.update(zeros, state.opt_state, state.params)
    state = state._replace(params=jax.tree.map(lambda x: x + 1, state.params), opt_state=opt_state)
    _, model_state = evaluation.make_evaluated(task, optimizer, feed.gather(32, 2), 2)(state, images(64))
    np.testing.assert_allclose(model_state["batch_stats"]["BatchNorm_0"]["mean"], 3.0, rtol=1e-6)


def test_sums_of_blocks_add_up():
    params, model_state = TASK.init(jax.random.key(0))
    arrays = images(30)
    evaluate = evaluation.make_evaluate(TASK, 500)
    blocks = [jax.tree.map(lambda x, s=s: x[s], arrays) for s in (slice(0, 11), slice(11, 30))]
    total = metrics.add(*(evaluate(params, model_state, jax.random.key(1), block) for block in blocks))
    whole = evaluate(params, model_state, jax.random.key(1), arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), total, whole)
