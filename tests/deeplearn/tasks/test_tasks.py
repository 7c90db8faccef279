from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn import metrics, roles
from deeplearn.errors import UserError
from deeplearn.tasks import transformations
from deeplearn.tasks.classification import classification
from deeplearn.tasks.regression import regression
from deeplearn.tasks.task import Task


class Net(nn.Module):
    """Dropout and batch norm, so that rng and model state matter."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


def images(key, number=7):
    labels = jax.random.randint(jax.random.fold_in(key, 1), (number,), 0, 3)
    return {"image": jax.random.normal(key, (number, 2, 2, 1)), "label": labels}


@pytest.fixture
def task():
    return classification(Net(), (2, 2, 1), 3)


def test_classification_loss(task, key):
    params, model_state = task.init(key)
    batch = images(key)
    loss, (new_state, found) = task.loss(params, model_state, batch, key)
    assert set(model_state) == set(new_state) == {"batch_stats"}
    assert not jnp.allclose(*(s["batch_stats"]["BatchNorm_0"]["mean"] for s in (model_state, new_state)))
    assert loss.dtype == jnp.float32 and 0 <= found["accuracy"] <= 1
    assert task.loss(params, model_state, batch, key)[0] == loss  # the same rng, the same dropout
    assert task.loss(params, model_state, batch, jax.random.fold_in(key, 1))[0] != loss


@pytest.mark.parametrize("label", [3, 255, -1, 2**31 - 1])
def test_a_label_that_is_no_class_makes_the_loss_nan(key, label):
    """In training and in evaluation; the last class does not stand for it."""
    for smoothing in (0.0, 0.1):
        task = classification(Net(), (2, 2, 1), 3, label_smoothing=smoothing)
        params, model_state = task.init(key)
        batch = images(key)
        wrong = {**batch, "label": batch["label"].at[2].set(label)}
        assert jnp.isnan(task.loss(params, model_state, wrong, key)[0])
        assert jnp.isnan(metrics.result(task.evaluate(params, model_state, wrong, key))["loss"])
        assert not jnp.isnan(task.loss(params, model_state, batch, key)[0])


@pytest.mark.parametrize("smoothing", [1.0, -0.1, 1.5, float("nan"), None])
def test_a_label_smoothing_that_makes_no_sense(smoothing):
    with pytest.raises(UserError, match="label_smoothing is .*; it must be"):
        classification(Net(), (2, 2, 1), 3, label_smoothing=smoothing)


def test_classification_evaluation(task, key):
    """Against NumPy; padding rows count for nothing, whatever is in them."""
    params, model_state = task.init(key)
    batch = images(key)
    logits = np.asarray(task.predict(params, model_state, batch), np.float64)
    labels = np.asarray(batch["label"])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    guess = logits.argmax(-1)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:2] * 0 + 1]), batch)
    padded["mask"] = jnp.arange(9.0) < 7
    padded["mask"] = padded["mask"].astype(jnp.float32)
    for rows in (batch, padded):
        found = metrics.result(task.evaluate(params, model_state, rows, key))
        np.testing.assert_allclose(found["loss"], -log_p[np.arange(7), labels].mean(), rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"], (guess == labels).mean(), rtol=1e-6)
        expected = np.zeros((3, 3))
        np.add.at(expected, (labels, guess), 1)
        np.testing.assert_allclose(found["confusion"], expected / 7, rtol=1e-6)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(found["class_accuracy"], np.diag(expected) / expected.sum(1), rtol=1e-6)


def test_sums_add_up_over_batches(task, key):
    params, model_state = task.init(key)
    batch = images(key)
    whole = task.evaluate(params, model_state, batch, key)
    parts = [jax.tree.map(lambda x, s=s: x[s], batch) for s in (slice(0, 3), slice(3, 7))]
    summed = metrics.add(*(task.evaluate(params, model_state, part, key) for part in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, summed)


OPTIONS = [
    {"ignore_label": -100},
    {"ignore_label": 1},
    {"class_weights": (0.5, 2.0, 3.0)},
    {"ignore_label": -100, "class_weights": (0.5, 0.0, 3.0), "label_smoothing": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_labels_with_weights(options, key):
    """Against PyTorch's mean; padding rows and ignored labels count for nothing, in any division into batches."""
    torch = pytest.importorskip("torch")
    task = classification(Net(), (2, 2, 1), 3, **options)
    params, model_state = task.init(key)
    batch = images(key, 9)
    ignored = options.get("ignore_label", -100)
    if "ignore_label" in options:
        batch["label"] = batch["label"].at[jnp.array([0, 5, 6])].set(ignored)
    labels = np.asarray(batch["label"])
    weights = options.get("class_weights")

    def theirs(logits, smoothing=0.0):
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        x, y = torch.tensor(np.array(logits, np.float64)), torch.tensor(labels.astype(np.int64))
        return torch.nn.functional.cross_entropy(x, y, weight, ignore_index=ignored, label_smoothing=smoothing).item()

    logits = task.predict(params, model_state, batch)
    counted = labels != ignored
    right = np.asarray(logits).argmax(-1) == labels
    padded = {name: jnp.concatenate([x, x[-2:]]) for name, x in batch.items()}
    padded["mask"] = (jnp.arange(11) < 9).astype(jnp.float32)
    halves = [jax.tree.map(lambda x, s=s: x[s], padded) for s in (slice(0, 4), slice(4, 11))]
    parts = [task.evaluate(params, model_state, half, key) for half in halves]
    for means in (task.evaluate(params, model_state, batch, key), metrics.add(*parts)):
        found = metrics.result(means)
        np.testing.assert_allclose(found["loss"], theirs(logits), rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"], right[counted].mean(), rtol=1e-6)
        np.testing.assert_allclose(found["confusion"].sum(), counted.sum() / 9, rtol=1e-6)
        np.testing.assert_allclose(means["class_accuracy"].count, [(labels[counted] == k).sum() for k in range(3)])

    captured = {}

    def remember(variables, *rest, **more):  # the logits of training, whose dropout is another
        captured["logits"], state = Net.apply(Net(), variables, *rest, **more)
        return captured["logits"], state

    task = classification(SimpleNamespace(init=Net().init, apply=remember), (2, 2, 1), 3, **options)
    loss, (_, trained) = task.loss(params, model_state, batch, key)
    logits = np.asarray(captured["logits"])
    np.testing.assert_allclose(metrics.divided(loss), theirs(logits, options.get("label_smoothing", 0.0)), rtol=1e-5)
    right = logits.argmax(-1) == labels
    np.testing.assert_allclose(metrics.divided(trained["accuracy"]), right[counted].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"class_weights": (1.0,)}, "1 class weights for 3 classes"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(UserError, match=said):
        classification(Net(), (2, 2, 1), 3, **options)


def test_regression(key):
    batch = {"inputs": jax.random.normal(key, (5, 3)), "targets": jnp.ones((5, 2))}

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(2)(x)

    task = regression(Linear(), (3,), baseline=lambda x: x[:, :2])
    params, model_state = task.init(key)
    assert model_state == {}
    prediction = np.asarray(task.predict(params, model_state, batch))
    loss, (_, found) = task.loss(params, model_state, batch, key)
    np.testing.assert_allclose(loss, np.square(prediction - 1).mean(), rtol=1e-6)
    mask = jnp.array([1.0, 1, 1, 0, 0])
    values = metrics.result(task.evaluate(params, model_state, {**batch, "mask": mask}, key))
    np.testing.assert_allclose(values["loss"], np.square(prediction[:3] - 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(values["baseline_loss"], np.square(batch["inputs"][:3, :2] - 1).mean(), rtol=1e-6)


def test_regression_trains_with_dropout_and_new_statistics(key):
    task = regression(Net(), (3,))
    batch = {"inputs": jax.random.normal(key, (5, 3)), "targets": jnp.ones((5, 3))}
    params, model_state = task.init(key)
    (a, (new_state, _)), (b, _) = (task.loss(params, model_state, batch, jax.random.fold_in(key, i)) for i in (0, 1))
    assert a != b
    assert not jnp.allclose(*(s["batch_stats"]["BatchNorm_0"]["mean"] for s in (model_state, new_state)))


def test_regularize(task, key):
    """Weights only, and not in evaluation."""
    params, model_state = task.init(key)
    batch = images(key)
    both = transformations.regularize(task, l1=0.1, l2=0.2)
    plain, _ = task.loss(params, model_state, batch, key)
    loss, (_, found) = both.loss(params, model_state, batch, key)
    kernels = [np.asarray(params[name]["kernel"], np.float64) for name in ("Dense_0", "Dense_1")]
    penalty = sum(0.1 * np.abs(w).sum() + 0.1 * np.square(w).sum() for w in kernels)
    np.testing.assert_allclose(found["penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(loss, plain + penalty, rtol=1e-5)
    assert both.evaluate is task.evaluate
    assert transformations.regularize(task) is task


def test_regularize_a_loss_with_weights(key):
    task = classification(Net(), (2, 2, 1), 3, ignore_label=1)
    params, model_state = task.init(key)
    args = (params, model_state, images(key), key)
    (plain, _), (loss, (_, found)) = (each.loss(*args) for each in (task, transformations.regularize(task, l2=0.2)))
    np.testing.assert_allclose(metrics.divided(loss), metrics.divided(plain) + found["penalty"], rtol=1e-6)


def test_biases_of_all_layers_in_one_array_have_no_penalty(key):
    params = {"layers": {"dense": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2)), "scale": jnp.ones((3, 2))}}}

    def loss(params, model_state, batch, rng):
        def layer(x, p):
            return (x @ p["dense"]["kernel"] + p["dense"]["bias"][None]) * p["dense"]["scale"][None], None

        return 0 * jax.lax.scan(layer, jnp.ones((5, 2)), params["layers"])[0].sum(), (model_state, {})

    def roles_of(params):
        return roles.lookup(roles.find(loss, params, {}, {}, key), params)

    stacked = transformations.regularize(Task(None, loss, None, None), l2=2.0, roles=roles_of)
    assert stacked.loss(params, {}, {}, key)[0] == 12


def test_preprocess_everywhere_and_augment_in_training_only(task, key):
    params, model_state = task.init(key)
    batch = images(key)

    def double(batch):
        return {**batch, "image": 2 * batch["image"]}

    twice = jax.tree.map(lambda x: x, double(batch))
    before = transformations.preprocess(task, double)
    assert before.loss(params, model_state, batch, key)[0] == task.loss(params, model_state, twice, key)[0]
    assert (before.predict(params, model_state, batch) == task.predict(params, model_state, twice)).all()

    def shift(rng, batch):
        return {**batch, "image": batch["image"] + jax.random.normal(rng, ())}

    augmented = transformations.augment(task, shift)
    losses = [augmented.loss(params, model_state, batch, jax.random.fold_in(key, i))[0] for i in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert augmented.evaluate is task.evaluate and augmented.predict is task.predict


def test_augmentation_and_the_loss_have_keys_of_their_own(task, key):
    keys = []
    recording = task._replace(loss=lambda params, model_state, batch, rng: keys.append(rng))
    transformations.augment(recording, lambda rng, batch: keys.append(rng)).loss({}, {}, {}, key)
    assert len({str(jax.random.key_data(each)) for each in (*keys, key)}) == 3
