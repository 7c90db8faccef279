import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn import optimizers
from deeplearn.tasks import transformations
from deeplearn.tasks.classification import classification
from deeplearn.training import feed, step
from deeplearn.training.state import create


class Net(nn.Module):
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x.reshape(x.shape[0], -1))
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3)(nn.tanh(x))


def make(optimizer="adam", batch_norm=False, **options):
    task = classification(Net(batch_norm), (2, 2, 1), 3)
    optimizer = optimizers.make(optimizer)
    return task, optimizer, step.make_step(task, optimizer, **options)


@pytest.fixture
def arrays(key):
    return {"image": jax.random.normal(key, (50, 2, 2, 1)), "label": jnp.arange(50) % 3}


def assert_equal(a, b):
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(data(x), data(y)), a, b)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_the_gradient_of_the_whole_batch(arrays, parts):
    batch = jax.tree.map(lambda x: x[:8], arrays)
    task, optimizer, whole = make("momentum")
    *_, accumulated = make("momentum", accumulate=parts)
    state = create(task, optimizer, 0)
    (a, found_a), (b, found_b) = whole(state, batch), accumulated(state, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a.params, b.params)
    np.testing.assert_allclose(found_a["loss"], found_b["loss"], rtol=1e-6)


@pytest.mark.parametrize("options", [{"ignore_label": -100}, {"class_weights": (0.2, 1.0, 5.0)}], ids=str)
@pytest.mark.parametrize("optimizer", ["momentum", "lbfgs"])  # lbfgs asks for the loss and the gradient elsewhere, too
@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_accumulation_of_labels_with_weights(arrays, options, optimizer, l2):
    """A mean of the parts' means would give each part the same weight; the first part here has no label that counts."""
    batch = jax.tree.map(lambda x: x[:8], arrays)
    if "ignore_label" in options:
        batch["label"] = batch["label"].at[jnp.array([0, 2, 4, 6, 1])].set(-100)  # parts are every second, or fourth
    task = transformations.regularize(classification(Net(), (2, 2, 1), 3, **options), l2=l2)
    optimizer = optimizers.make(optimizer)
    state, results = create(task, optimizer, 0), []
    for parts in (1, 2, 4):
        results.append(step.make_step(task, optimizer, accumulate=parts)(state, batch))
    (expected, metrics), *others = results
    for found, values in others:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), expected.params, found.params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), metrics, values)
    assert {x.dtype for x in jax.tree.leaves((expected.params, metrics))} == {jnp.dtype("float32")}


def test_a_batch_in_which_nothing_counts_changes_nothing(arrays):
    batch = jax.tree.map(lambda x: x[:8], arrays) | {"label": jnp.full(8, -100)}
    task, optimizer = classification(Net(), (2, 2, 1), 3, ignore_label=-100), optimizers.make("minibatch_sgd")
    state = create(task, optimizer, 0)
    for parts in (1, 4):
        found, metrics = step.make_step(task, optimizer, accumulate=parts)(state, batch)
        assert_equal(found.params, state.params)
        assert metrics == {"loss": 0, "accuracy": 0, "gradient_norm": 0}


def test_accumulation_takes_less_memory():
    task, optimizer, _ = make()
    state = jax.eval_shape(lambda: create(task, optimizer, 0))
    batch = {
        "image": jax.ShapeDtypeStruct((4096, 2, 2, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((4096,), jnp.int32),
    }
    sizes = [
        jax.jit(make(accumulate=parts)[2]).lower(state, batch).compile().memory_analysis().temp_size_in_bytes
        for parts in (1, 8)
    ]
    assert sizes[1] < sizes[0] / 2


def test_any_chunking_gives_the_same_bits(arrays):
    """Dropout and batch norm included: this is what makes a resumed run equal to an unbroken one."""
    task, optimizer, one = make(batch_norm=True)
    chunk = jax.jit(step.make_chunk(one, feed.gather(8, 10)))
    state = create(task, optimizer, 3)
    ends = []
    for lengths in ((10, 10), (3, 7, 9, 1), (1,) * 20):
        current = state
        for length in lengths:
            current, _ = chunk(current, arrays, length)
        ends.append(current)
    assert int(ends[0].step) == 20
    assert_equal(ends[0], ends[1])
    assert_equal(ends[0], ends[2])


def test_metrics_are_means_over_the_chunk(arrays):
    task, optimizer, one = make()
    chunk = jax.jit(step.make_chunk(one, feed.gather(8, 4)))
    state, losses = create(task, optimizer, 0), []
    _, together = chunk(state, arrays, 4)
    for _ in range(4):
        state, found = chunk(state, arrays, 1)
        losses.append(found["loss"])
    np.testing.assert_allclose(together["loss"], np.mean(losses), rtol=1e-6)
    assert len(set(map(float, losses))) == 4 and together["gradient_norm"] > 0


def test_streamed_batches_are_those_that_lie_on_the_device(arrays):
    task, optimizer, one = make(batch_norm=True)
    state = create(task, optimizer, 0)
    resident, _ = step.make_chunk(one, feed.gather(8, 5))(state, arrays, 5)
    batch = feed.gather(8, 5)(state, arrays)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(batch(i) for i in range(5)))
    streamed, _ = step.make_chunk(one, lambda state, data: lambda i: jax.tree.map(lambda x: x[i], data))(
        state, stacked, 5
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), resident.params, streamed.params)


def test_every_step_has_a_key_of_its_own(arrays):
    """Of which dropout and augmentation make their numbers; and a seed has its own."""
    task, optimizer, _ = make()

    def loss(params, model_state, batch, rng):
        drawn = jax.random.uniform(rng)
        return task.loss(params, model_state, batch, rng)[0], (model_state, {"drawn": drawn, "square": drawn**2})

    one = step.make_step(task._replace(loss=loss), optimizer)
    batch, drawn = jax.tree.map(lambda x: x[:8], arrays), []
    for seed in (0, 1):
        state = create(task, optimizer, seed)
        for _ in range(3):
            state, found = one(state, batch)
            drawn.append(float(found["drawn"]))
    assert len(set(drawn)) == 6
    parts = step.make_step(task._replace(loss=loss), optimizer, accumulate=2)
    _, found = parts(create(task, optimizer, 0), batch)
    assert found["square"] - found["drawn"] ** 2 > 1e-4  # the variance of two draws: each part has a key of its own


def test_seeds_differ_and_repeat():
    task, optimizer, _ = make()
    a, b, c = (create(task, optimizer, seed).params for seed in (0, 0, 1))
    assert_equal(a, b)
    assert not jnp.allclose(a["Dense_0"]["kernel"], c["Dense_0"]["kernel"])


def test_with_parameters_is_differentiated_through(arrays):
    task, *_ = make()
    halved = transformations.with_parameters(task, lambda params: jax.tree.map(lambda x: x / 2, params))
    params, model_state = task.init(jax.random.key(0))
    batch = jax.tree.map(lambda x: x[:8], arrays)
    args = ({}, batch, jax.random.key(1))
    gradient = jax.grad(halved.loss, has_aux=True)(params, *args)[0]
    direct = jax.grad(task.loss, has_aux=True)(jax.tree.map(lambda x: x / 2, params), *args)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y / 2, atol=1e-6), gradient, direct)


def test_a_line_search_is_told_of_other_places(arrays):
    """The loss and the gradient there, of the same batch with the same key."""
    task, optimizer, _ = make(batch_norm=True)
    state, batch = create(task, optimizer, 0), jax.tree.map(lambda x: x[:8], arrays)
    place, told = jax.tree.map(lambda x: x + 1, state.params), {}

    def update(gradient, opt_state, params, *, value, value_fn, grad_fn):
        told.update(here=(value, gradient), again=(value_fn(params), grad_fn(params)))
        told["there"] = (value_fn(place), grad_fn(place))
        return jax.tree.map(jnp.zeros_like, params), opt_state

    one = step.make_step(task, optimizer._replace(update=update))
    one(state, batch)
    here, again, elsewhere = (told[name] for name in ("here", "again", "there"))
    one(state._replace(params=place), batch)
    for found, expected in ((again, here), (elsewhere, told["here"])):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)
    assert jnp.abs(here[0] - elsewhere[0]) > 0.01
