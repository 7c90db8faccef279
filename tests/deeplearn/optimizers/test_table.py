"""Every optimizer of the table trains and can be vmapped; where torch has it, it takes torch's steps."""

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


@pytest.mark.parametrize("scale, middle", [("linear", 0.5), ("log", 0.09**0.5), ("reverse_log", 1 - 0.09**0.5)])
def test_a_range_is_even_on_its_scale(scale, middle):
    space = Range(0.1, 0.9, scale)
    np.testing.assert_allclose([space.at(0.0), space.at(0.5), space.at(1.0)], [0.1, middle, 0.9])


def logistic():
    """A regression whose gradients have every sign and size: inputs (32, 4), labels (32, 3)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4)) * np.array([3.0, 1.0, 0.3, 0.1])
    return x, np.eye(3)[rng.integers(0, 3, 32)], rng.normal(size=(4, 3))


def ours(text, steps, **arguments):
    x, y, w = (jnp.asarray(a, jnp.float32) for a in logistic())
    optimizer = optimizers.make(text, **arguments)

    def value_fn(params):
        return -(y * jax.nn.log_softmax(x @ params["kernel"])).sum(1).mean()

    def step(i, carry):
        params, state = carry
        grads = jax.grad(value_fn)(params)
        updates, state = optimizer.update(
            grads, state, params, value=value_fn(params), value_fn=value_fn, grad_fn=jax.grad(value_fn)
        )
        return optax.apply_updates(params, updates), state

    params = {"kernel": w}
    params, _ = jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))((params, optimizer.init(params)))
    return np.asarray(params["kernel"])


def torchs(make, steps):
    torch = pytest.importorskip("torch")
    x, y, w = (torch.tensor(a) for a in logistic())
    w.requires_grad_()
    optimizer = make(torch.optim, [w])

    def closure():
        optimizer.zero_grad()
        value = -(y * torch.log_softmax(x @ w, 1)).sum(1).mean()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return w.detach().numpy()


@pytest.mark.parametrize(
    "text, make",
    [
        ("minibatch_sgd", lambda t, p: t.SGD(p, 0.1)),
        ("momentum(momentum=0.8)", lambda t, p: t.SGD(p, 0.1, 0.8)),
        ("nesterov(momentum=0.8)", lambda t, p: t.SGD(p, 0.1, 0.8, nesterov=True)),
        ("adagrad(eps=1e-10)", lambda t, p: t.Adagrad(p, 0.1, initial_accumulator_value=0.1)),
        ("adadelta(rho=0.8)", lambda t, p: t.Adadelta(p, 0.1, 0.8)),
        ("rmsprop(decay=0.8)", lambda t, p: t.RMSprop(p, 0.1, 0.8)),
        ("rmsprop(decay=0.8, centered=True)", lambda t, p: t.RMSprop(p, 0.1, 0.8, centered=True)),
        ("adam(b1=0.8, b2=0.95)", lambda t, p: t.Adam(p, 0.1, (0.8, 0.95))),
        ("adamax(b1=0.8, b2=0.95)", lambda t, p: t.Adamax(p, 0.1, (0.8, 0.95))),
        # torch's schedule of the momentum, off
        ("nadam(b1=0.8, b2=0.95)", lambda t, p: t.NAdam(p, 0.1, (0.8, 0.95), momentum_decay=1e9)),
        (
            "adamw(b1=0.8, b2=0.95, weight_decay=0.5)",
            lambda t, p: t.AdamW(p, 0.1, (0.8, 0.95), weight_decay=0.5),
        ),
        ("radam(b1=0.8, b2=0.95)", lambda t, p: t.RAdam(p, 0.1, (0.8, 0.95))),
        ("rprop(smallest=0.01, largest=3)", lambda t, p: t.Rprop(p, 0.1, step_sizes=(1e-3, 0.3))),
    ],
)
def test_steps_are_those_of_torch(text, make):
    np.testing.assert_allclose(ours(text, 12, learning_rate=0.1), torchs(make, 12), rtol=1e-4, atol=1e-5)


def test_lbfgs_finds_the_minimum_that_torchs_finds():
    expected = torchs(lambda t, p: t.LBFGS(p, max_iter=100, line_search_fn="strong_wolfe"), 1)
    found = ours("lbfgs", 40)
    shift = (found - expected).mean(1, keepdims=True)  # which the softmax leaves free
    np.testing.assert_allclose(found - shift, expected, rtol=2e-2, atol=2e-3)


def gradient(w):
    x, y, _ = logistic()
    z = np.exp(x @ w)
    return x.T @ (z / z.sum(1, keepdims=True) - y) / len(x)


def test_amsgrad_is_reddis_with_adams_corrections():
    _, _, w = logistic()
    m = v = largest = np.zeros_like(w)
    for t in range(1, 13):
        g = gradient(w)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        largest = np.maximum(largest, v / (1 - 0.95**t))
        w = w - 0.1 * m / (1 - 0.8**t) / (np.sqrt(largest) + 1e-8)
    found = ours("amsgrad(b1=0.8, b2=0.95)", 12, learning_rate=0.1)
    np.testing.assert_allclose(found, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, decay", [("adam", 0.0), ("adamw", 0.5)])
def test_adam_without_bias_correction(name, decay):
    _, _, w = logistic()
    m = v = np.zeros_like(w)
    for _ in range(12):
        g = gradient(w)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w = w - 0.1 * (m / (np.sqrt(v) + 1e-8) + decay * w)
    text = f"{name}(b1=0.8, b2=0.95, bias_correction=False)"
    found = ours(text, 12, learning_rate=0.1, weight_decay=decay)
    np.testing.assert_allclose(found, w, rtol=1e-4, atol=1e-5)
