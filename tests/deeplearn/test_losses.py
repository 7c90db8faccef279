"""The losses against float64 NumPy and PyTorch."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deeplearn import losses
from deeplearn.errors import UserError
from deeplearn.metrics import divided


def logits_and_labels(seed, batch=7, classes=5, scale=3.0):
    random = np.random.default_rng(seed)
    return random.normal(0, scale, (batch, classes)), random.integers(0, classes, batch)


WEIGHTS = (0.5, 3.0, 0.0, 1.25, 2.0)


def reference(logits, labels, smoothing, ignored, weights):
    """Each example's loss by the docstring's formula, in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    weights = np.ones(5) if weights is None else np.array(weights)
    q = (1 - smoothing) * np.eye(5)[np.where(labels == ignored, 0, labels)] + smoothing / 5
    return np.where(labels == ignored, 0, -(weights * q * log_p).sum(-1))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([0.01, 3.0, 100.0]),
    st.sampled_from([None, -100, 2, 0]),
    st.sampled_from([None, WEIGHTS]),
    st.sampled_from([(7,), (2, 3), (1,)]),
)
@example(0, 0.0, 3.0, None, None, (7,))
@example(1, 0.1, 3.0, 0, WEIGHTS, (2, 3))
@example(2, 1.0, 100.0, -100, WEIGHTS, (1,))
def test_cross_entropy_is_the_formula(seed, smoothing, scale, ignored, weights, shape):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, scale, (*shape, 5)), random.integers(0, 5, shape)
    labels = labels if ignored is None else np.where(random.random(shape) < 0.3, ignored, labels)
    found = losses.cross_entropy(jnp.float32(logits), jnp.array(labels), smoothing, ignored, weights)
    assert found.shape == shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(logits, labels, smoothing, ignored, weights), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignored", [None, -100, 3])
def test_the_mean_and_its_gradient_are_pytorchs(smoothing, ignored, weights):
    torch = pytest.importorskip("torch")
    logits, labels = logits_and_labels(0, batch=12)
    if ignored is not None:
        labels[[1, 4, 5]] = ignored
    x = torch.tensor(logits, requires_grad=True)
    options = {} if ignored is None else {"ignore_index": ignored}
    options |= {} if weights is None else {"weight": torch.tensor(weights, dtype=torch.float64)}
    value = torch.nn.functional.cross_entropy(x, torch.tensor(labels), label_smoothing=smoothing, **options)
    value.backward()

    def mean(x):
        loss, accuracy = losses.over_batch(x, jnp.array(labels), smoothing, ignored, weights)
        return divided(loss), divided(accuracy)

    (found, accuracy), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.float32(logits))
    np.testing.assert_allclose(found, value.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-6)
    counted = labels != ignored
    np.testing.assert_allclose(accuracy, (logits.argmax(-1) == labels)[counted].mean(), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_in_which_nothing_counts_has_the_loss_0(smoothing):
    """PyTorch's is NaN, which would end a run."""
    logits, labels = jnp.float32(logits_and_labels(0)[0]), jnp.full(7, -100)

    def mean(x):
        return divided(losses.over_batch(x, labels, smoothing, -100, WEIGHTS)[0])

    value, gradient = jax.value_and_grad(mean)(logits)
    assert value == 0 and (gradient == 0).all()
    only = losses.over_batch(logits, jnp.full(7, 2), 0.0, None, WEIGHTS)[0]  # a class of weight 0
    assert divided(only) == 0


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6, 1e30])
def test_what_all_logits_have_in_common_costs_no_digits(offset):
    logits, labels = logits_and_labels(3)
    shifted = np.float32(logits) + np.float32(offset)  # rounded here, and nowhere later
    for smoothing in (0.0, 0.1):
        found = losses.cross_entropy(jnp.array(shifted), jnp.array(labels), smoothing)
        expected = reference(shifted.astype(np.float64), labels, smoothing, None, None)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [-1, 5, -100, 300])
def test_a_label_that_is_no_class_is_not_another_one(label):
    """An index that is too large or negative would take another logit silently."""
    labels = jnp.array([label, 1])
    for weights in (None, WEIGHTS):
        found = losses.cross_entropy(jnp.zeros((2, 5)), labels, 0.0, None, weights)
        assert np.isnan(found[0]) and np.isfinite(found[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32])
def test_labels_of_any_integer_type(dtype):
    logits = jnp.float32(np.random.default_rng(0).normal(size=(3, 256)))
    labels = np.array([0, 127, 3], dtype)
    found = losses.cross_entropy(logits, jnp.array(labels), 0.1, -100)
    np.testing.assert_array_equal(found, losses.cross_entropy(logits, jnp.array(labels, jnp.int32), 0.1))


def test_no_byte_is_minus_100():
    """The byte with the same bits is a label that is no class, and not one that is ignored."""
    labels = jnp.array([1, 256 - 100], jnp.uint8)
    assert losses.label_weights(labels, -100).tolist() == [1, 1]
    assert jnp.isnan(losses.cross_entropy(jnp.zeros((2, 3)), labels, ignore_label=-100)).tolist() == [False, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (*WEIGHTS, 7.0, 7.0)])
def test_logits_of_minus_infinity_are_no_classes(smoothing, weights):
    """As of the rows of a table that no token has."""
    logits, labels = logits_and_labels(1)
    padded = jnp.float32(np.pad(logits, ((0, 0), (0, 2)), constant_values=-np.inf))
    plain = losses.cross_entropy(jnp.float32(logits), jnp.array(labels), smoothing, None, weights and weights[:5])
    value, gradient = jax.vjp(lambda x: losses.cross_entropy(x, jnp.array(labels), smoothing, None, weights), padded)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    (gradient,) = gradient(jnp.ones(7))
    assert np.isfinite(gradient).all() and (gradient[:, 5:] == 0).all()


@pytest.mark.parametrize(
    "smoothing, weights, said",
    [
        (-0.1, None, "label_smoothing is -0.1; it must be in [0, 1)"),
        (1.5, None, "label_smoothing is 1.5; it must be in [0, 1)"),
        (math.nan, None, "label_smoothing is nan; it must be a finite number in [0, 1)"),
        (0.0, (1.0, 2.0), "there are 2 class weights for 3 classes; give one for each"),
        (0.0, (), "there are 0 class weights for 3 classes"),
        (
            0.0,
            (1.0, -2.0, 1.0),
            "class_weights is (1.0, -2.0, 1.0); it must be a list, each of it a finite number, at least 0",
        ),
        (0.0, (1.0, math.nan, 1.0), "each of it a finite number, at least 0"),
        (0.0, (1.0, math.inf, 1.0), "each of it a finite number, at least 0"),
        (0.0, (0.0, 0.0, 0.0), "class_weights are all 0; at least one must be above 0"),
    ],
)
def test_options_that_make_no_sense(smoothing, weights, said):
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        losses.check_options(smoothing, weights, 3)
    assert "\n" not in str(raised.value)


def test_options_that_make_sense():
    losses.check_options(0.0, None, 3)
    losses.check_options(0.9, (0.0, 1.0, 2.0), 3)
    losses.check_options(0.1, np.ones(3), 3)


def test_cross_entropy_is_stable_and_float32():
    logits = jnp.array([[1e4, -1e4], [0.0, 1e4]], jnp.bfloat16)
    found = losses.cross_entropy(logits, jnp.array([0, 0]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0, 1e4], rtol=0.01)
    assert np.isfinite(
        jax.grad(lambda x: losses.cross_entropy(x, jnp.array([0, 0])).sum())(logits.astype(jnp.float32))
    ).all()


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (4, 2, 3), (4,)])
def test_squared_error_is_the_mean_an_example(shape):
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=shape), random.normal(size=shape)
    found = losses.squared_error(jnp.float32(outputs), jnp.float32(targets))
    np.testing.assert_allclose(found, ((outputs - targets) ** 2).reshape(4, -1).mean(-1), rtol=1e-5)


def test_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"\(4, 1\) is not the targets', \(4,\)"):
        losses.squared_error(jnp.zeros((4, 1)), jnp.zeros(4))
