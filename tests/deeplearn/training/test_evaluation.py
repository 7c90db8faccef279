import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn import metrics, optimizers
from deeplearn.config import base_config
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import wire
from deeplearn.tasks.classification import classification
from deeplearn.training import evaluation, feed, program, step
from deeplearn.training.state import EVALUATE, create


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
    evaluated = evaluation.make_evaluated(TASK, optimizer, feed.gather(32, 50), 50, 1)
    _, old = evaluated(state, None)
    _, new = jax.jit(evaluated)(state, arrays)
    assert jnp.abs(old["batch_stats"]["BatchNorm_0"]["mean"]).max() == 0
    mean = arrays["image"].reshape(64, 4).mean(axis=0)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], mean, atol=0.25)


@pytest.mark.parametrize("parts", [1, 2, 8, 32])
def test_refreshed_statistics_of_batches_in_parts(parts):
    """A step of the running average a batch, to the mean over its parts; a step a part would leave the last few parts.

    A part of one example has no variance: the network divides by its epsilon, in training and here.
    """
    optimizer = optimizers.make("schedule_free_sgd")
    state, arrays, batch_of = create(TASK, optimizer, 0), images(64), feed.gather(32, 5)
    evaluated = evaluation.make_evaluated(TASK, optimizer, batch_of, 5, parts)
    found = jax.jit(evaluated)(state, arrays)[1]["batch_stats"]["BatchNorm_0"]
    mean, var = np.zeros(4), np.ones(4)
    for i in range(5):
        rows = np.float64(batch_of(state, arrays)(i)["image"]).reshape(32, 4)
        each = rows.reshape(32 // parts, parts, 4)  # parts as in_parts makes them
        mean = 0.9 * mean + 0.1 * rows.mean(axis=0)
        var = 0.9 * var + 0.1 * each.var(axis=0).mean(axis=0)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], var, rtol=1e-5, atol=1e-6)


class Counting(nn.Module):
    """Statistics that are counted, and a state beside them that every part changes."""

    @nn.compact
    def __call__(self, x, train=False):
        batches = self.variable("batch_stats", "batches", lambda: jnp.int32(0))
        parts = self.variable("seen", "parts", lambda: jnp.int32(0))
        if train and not self.is_initializing():
            batches.value, parts.value = batches.value + 1, parts.value + 1
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_what_a_pass_in_parts_does_to_integers_and_to_other_state():
    task, optimizer = classification(Counting(), (2, 2, 1), 3), optimizers.make("schedule_free_sgd")
    state = create(task, optimizer, 0)
    _, found = evaluation.make_evaluated(task, optimizer, feed.gather(8, 5), 5, 4)(state, images(64))
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, state.model_state)
    assert found == {"batch_stats": {"batches": 5}, "seen": {"parts": 20}}


def temporaries(function, *args) -> int:
    """Bytes, by the compiler."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        for _ in range(3):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(64)(x)))
        return nn.Dense(3)(x)


def test_the_pass_takes_no_more_memory_than_a_step():
    task, optimizer = classification(Deep(), (2, 2, 1), 3), optimizers.make("schedule_free_sgd")
    state = jax.eval_shape(lambda: create(task, optimizer, 0))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4096, *x.shape[1:]), x.dtype), images(1))
    sizes = {}
    for parts in (1, 16):
        pass_over = evaluation.make_evaluated(task, optimizer, lambda state, data: lambda i: data, 50, parts)
        sizes[parts] = temporaries(pass_over, state, batch)
    step_size = temporaries(step.make_step(task, optimizer, accumulate=16), state, batch)
    assert sizes[16] < sizes[1] / 4 and sizes[16] < 1.1 * step_size, (sizes, step_size)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_run_evaluates_by_statistics_of_its_own_parts(parts):
    sources = [Arrays(jax.tree.map(np.asarray, images(64))) for _ in range(3)]
    config = base_config(batch_size=16, accumulate=parts, steps=4, log_every=4, ema=0.9, mesh="data:1")
    made = wire(config, TASK, Data("blobs", *sources))
    built = program.build(made)
    state, _ = built.chunk(built.init(), built.feed.data(0, 4), 4)
    pass_over = evaluation.make_evaluated(TASK, made.optimizer, built.feed.batch_of, 4, parts)
    evaluated = jax.jit(pass_over)(state, built.feed.data(4, 4))
    expected = metrics.result(evaluation.make_evaluate(TASK, 500)(*evaluated, state.rng, images(64)))
    np.testing.assert_allclose(built.evaluate(state, "validation")["loss"], expected["loss"], rtol=1e-5)


def test_evaluation_uses_the_optimizers_own_parameters():
    optimizer = optimizers.make("adam", ema=0.5)
    state = create(TASK, optimizer, 0)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    _, opt_state = optimizer.update(zeros, state.opt_state, state.params)
    moved = jax.tree.map(lambda x: x + 1, state.params)
    params, _ = evaluation.make_evaluated(TASK, optimizer, None, 0, 1)(
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
    _, model_state = evaluation.make_evaluated(task, optimizer, feed.gather(32, 2), 2, 1)(state, images(64))
    np.testing.assert_allclose(model_state["batch_stats"]["BatchNorm_0"]["mean"], 3.0, rtol=1e-6)


def test_sums_of_blocks_add_up():
    params, model_state = TASK.init(jax.random.key(0))
    arrays = images(30)
    evaluate = evaluation.make_evaluate(TASK, 500)
    blocks = [jax.tree.map(lambda x, s=s: x[s], arrays) for s in (slice(0, 11), slice(11, 30))]
    total = metrics.add(*(evaluate(params, model_state, jax.random.key(1), block) for block in blocks))
    whole = evaluate(params, model_state, jax.random.key(1), arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), total, whole)


def test_every_batch_has_a_key_of_its_own():
    """The variance of three draws; and they are not those of the caller's key, which training has."""

    def evaluate(params, model_state, batch, rng):
        drawn = jax.random.uniform(rng)
        return {"drawn": metrics.Mean(drawn, jnp.float32(1)), "square": metrics.Mean(drawn**2, jnp.float32(1))}

    task, rng = TASK._replace(evaluate=evaluate), jax.random.key(1)
    found = metrics.result(evaluation.make_evaluate(task, 16)({}, {}, rng, images(40)))
    assert found["square"] - found["drawn"] ** 2 > 1e-3
    keys = [jax.random.fold_in(jax.random.fold_in(rng, EVALUATE), i) for i in range(3)]
    np.testing.assert_allclose(found["drawn"], np.mean([jax.random.uniform(key) for key in keys]), rtol=1e-6)
