"""What we wrote beside Optax, against Optax where Optax has it in another form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from deeplearn import optimizers
from deeplearn.optimizers import aliases

MATRIX = jnp.array([[3.0, 1.0], [1.0, 2.0]])


def value_fn(params):
    return 0.5 * params["w"] @ MATRIX @ params["w"] + params["w"].sum() ** 4 / 4


grad_fn = jax.grad(value_fn)
START = {"w": jnp.array([1.0, -0.7])}


def close(x, y, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), x, y)


def path(optimizer, steps):
    params, state, visited = START, optimizer.init(START), []
    for _ in range(steps):
        updates, state = optimizer.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        visited.append(params["w"])
    return np.array(visited), params, state


def test_sam_is_that_of_optax():
    adversary = optax.chain(contrib.normalize(), optax.sgd(0.2))
    reference = contrib.sam(optax.sgd(0.05, 0.9), adversary, opaque_mode=True)
    inner = optax.GradientTransformationExtraArgs(
        reference.init,
        lambda g, s, p, grad_fn: reference.update(g, s, p, grad_fn=lambda p, i: grad_fn(p)),
    )
    close(path(aliases.sam(0.05, rho=0.2, momentum=0.9), 8)[0], path(inner, 8)[0])


def test_lookahead_is_that_of_optax():
    ours, _, state = path(optax.with_extra_args_support(aliases.lookahead(0.05, 0.9, 3, 0.4)), 8)
    reference = optax.lookahead(optax.sgd(0.05, 0.9), 3, 0.4)
    pair = optax.LookaheadParams.init_synced(START)
    reference_state = reference.init(pair)
    for expected in ours:
        with jax.numpy_dtype_promotion("standard"):
            updates, reference_state = reference.update(grad_fn(pair.fast), reference_state, pair)
        pair = optax.apply_updates(pair, updates)
        close(pair.fast["w"], expected)
    close(state.slow, pair.slow)


@pytest.mark.parametrize("turn, expected", [(+1, -0.1 * 2), (-1, 0.0), (0, 0.0)])
def test_rprop_grows_while_the_sign_stays_and_rests_when_it_turns(turn, expected):
    rprop = aliases.rprop(0.1, shrink=0.5, grow=2.0, smallest=0.1, largest=10.0)
    params = {"w": jnp.ones(1)}
    first, state = rprop.update({"w": jnp.array([3.0])}, rprop.init(params), params)
    close(first["w"], [-0.1])
    second, state = rprop.update({"w": jnp.array([5.0 * turn])}, state, params)
    close(second["w"], [expected])
    close(state.sizes["w"], [{+1: 2.0, -1: 0.5, 0: 1.0}[turn]])


def test_schedule_free_evaluates_the_mean_of_the_fast_iterates():
    optimizer = optimizers.make("schedule_free_sgd(b1=0.5)", learning_rate=0.1)
    params, state = START, optimizer.init(START)
    fast = [START["w"]]
    for _ in range(5):
        fast.append(fast[-1] - 0.1 * grad_fn(params)["w"])
        updates, state = optimizer.update(grad_fn(params), state, params)
        params = optax.apply_updates(params, updates)
        x = np.mean(fast[1:], axis=0)
        close(optimizer.evaluation_params(state, params)["w"], x)
        close(params["w"], 0.5 * x + 0.5 * fast[-1])
    moved = optimizers.with_hyperparameters(state, {"b1": 0.25})
    updates, moved = optimizer.update(grad_fn(params), moved, params)
    assert float(moved.inner_state["optimizer"].b1) == 0.25


def test_muon_steps_a_convolution_as_one_matrix_and_all_else_by_adam():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 5)), jnp.float32)
    params = {"conv": {"kernel": kernel, "bias": jnp.ones(5)}, "embed": {"embedding": jnp.ones((4, 6))}}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    muon, adam = optimizers.make("muon", learning_rate=1.0), optimizers.make("nadam", learning_rate=1.0)
    updates, _ = muon.update(grads, muon.init(params), params)
    expected, _ = adam.update(grads, adam.init(params), params)
    close((updates["conv"]["bias"], updates["embed"]), (expected["conv"]["bias"], expected["embed"]))
    singular = np.linalg.svd(updates["conv"]["kernel"].reshape(18, 5), compute_uv=False)
    # Newton and Schulz's five steps bring each singular value near 1; 0.2 sqrt(18) makes the mean square Adam's.
    assert np.all(np.abs(singular / (0.2 * 18**0.5) - 1) < 0.4)


def test_sophia_divides_by_the_hessian():
    hessian = jnp.array([100.0, 400.0])
    quadratic = lambda params: 0.5 * (hessian * params["w"] ** 2).sum()  # noqa: E731
    params = {"w": jnp.array([1e-3, 1e-3])}
    sophia = optimizers.make("sophia(b1=0, b2=0, gamma=1, update_interval=1)", learning_rate=0.5)
    state = sophia.init(params)
    for _ in range(2):  # the Hessian of a step serves the next
        updates, state = sophia.update(jax.grad(quadratic)(params), state, params, value_fn=quadratic)
    close(updates["w"], -0.5 * params["w"])


def test_novograd_and_prodigy_decay_weights_alone():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    for name, rate in (("novograd", 0.1), ("prodigy", 0.1 * 1e-3), ("dadapt_adamw", 0.1 * 1e-3)):
        d0 = "(d0=1e-3)" if name != "novograd" else ""
        plain, decaying = (optimizers.make(name + d0, learning_rate=0.1, weight_decay=decay) for decay in (0.0, 0.5))
        without, _ = plain.update(grads, plain.init(params), params)
        updates, _ = decaying.update(grads, decaying.init(params), params)
        close(updates["bias"], without["bias"])
        close(updates["kernel"], without["kernel"] - rate * 0.5)
