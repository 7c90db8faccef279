"""The losses against float64 NumPy and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplearn import losses


def logits_and_labels(seed, batch=7, classes=5, scale=3.0):
    random = np.random.default_rng(seed)
    return random.normal(0, scale, (batch, classes)), random.integers(0, classes, batch)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.01, 3.0, 100.0]))
def test_cross_entropy_is_the_formula(seed, smoothing, scale):
    logits, labels = logits_and_labels(seed, scale=scale)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    q = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    found = losses.cross_entropy(jnp.float32(logits), jnp.array(labels), smoothing)
    assert found.shape == (7,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, -(q * log_p).sum(-1), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_its_gradient_are_pytorchs(smoothing):
    torch = pytest.importorskip("torch")
    logits, labels = logits_and_labels(0)
    x = torch.tensor(logits, requires_grad=True)
    value = torch.nn.functional.cross_entropy(x, torch.tensor(labels), label_smoothing=smoothing)
    value.backward()

    def mean(x):
        return losses.cross_entropy(x, jnp.array(labels), smoothing).mean()

    found, gradient = jax.value_and_grad(mean)(jnp.float32(logits))
    np.testing.assert_allclose(found, value.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-6)


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
