from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplearn import optimizers, schedules
from deeplearn.errors import UserError
from deeplearn.optimizers import OPTIMIZERS

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 2.0])}
GRADS = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([1.0, -1.0])}


def close(x, y, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), x, y)


def steps(optimizer, count=1, params=PARAMS):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(count):
        updates, state = update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    "text, message",
    [
        ("adan2", "did you mean adan"),
        ("adam(b3=0.9)", "unknown setting of optimizer adam 'b3'; did you mean b2 or b1"),
        ("adam(b1='a')", "b1='a' is no number"),
        ("adam(bias_correction=1)", "is no truth value"),
        ("muon(ns_steps=2.5)", "is no whole number"),
        ("adam(b1=1)", "must be in \\[0, 1\\)"),
        ("adam(eps=-1)", "must be at least 0"),
        ("schedule_free_sgd(b1=0)", "must be above 0"),
        ("schedule_free_adamw(b1=0)", "must be above 0"),
        ("adam(eps=1e999)", "must be at least 0"),
        ("lbfgs(memory_size=0)", "must be at least 1"),
        ("adam(0.1)", "is not of the form"),
    ],
)
def test_mistakes_in_the_text_are_one_line_for_the_user(text, message):
    with pytest.raises(UserError, match=message) as error:
        optimizers.make(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("ema", 1.0),
        ("clip_norm", -1.0),
        ("max_norm", -1.0),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}={value} is out of range"):
        optimizers.make("adam", **{name: value})


@pytest.mark.parametrize(
    "text, said",
    [
        ("adam(b1=1.5)", "optimizer adam: b1=1.5 is out of range; it must be in [0, 1)"),
        ("adam(b2=1)", "optimizer adam: b2=1.0 is out of range; it must be in [0, 1)"),
        ("adam(b1=1e400)", "optimizer adam: b1=inf is out of range"),
        ("adam(b1=True)", "optimizer adam: b1=True is no number, e.g. b1=0.9"),
        ("adam(b2=nan)", "'adam(b2=nan)' is not of the form name or name(key=value)"),
        ("adam(", "'adam(' is not of the form name or name(key=value)"),
        ("muon(ns_steps=0)", "optimizer muon: ns_steps=0 is out of range; it must be at least 1"),
        ("muon(steps=5)", "unknown setting of optimizer muon 'steps'; did you mean ns_steps or eps?"),
        ("lbfgs(memory_size=1.5)", "optimizer lbfgs: memory_size=1.5 is no whole number, e.g. memory_size=10"),
        ("rmsprop(decay=-0.1)", "optimizer rmsprop: decay=-0.1 is out of range; it must be in [0, 1)"),
        ("lamb(weight_decay=-1)", "optimizer lamb: weight_decay=-1.0 is out of range; it must be at least 0"),
        ("lamb(weight_decay=1e999)", "optimizer lamb: weight_decay=inf is out of range"),
    ],
)
def test_settings_that_make_no_sense_are_refused(text, said):
    with pytest.raises(UserError) as raised:
        optimizers.make(text)
    assert str(raised.value).startswith(said)


DECAYS = {"b1", "b2", "b3", "adam_b1", "adam_b2", "beta", "momentum", "decay"}  # of averages
NUMBERS = [(name, key) for name, x in OPTIMIZERS.items() for key, v in x.hyperparameters.items() if type(v) is float]


@pytest.mark.parametrize("name, key", NUMBERS)
def test_every_number_has_its_range(name, key):
    """The decay of an average is below 1, and no number is below 0 but a loss."""
    bad = [1.0] if key in DECAYS or (name, key) == ("adadelta", "rho") else []
    for value in bad + ([] if key in ("f_min", "lower_bound") else [-1.0]):
        with pytest.raises(UserError, match=f"optimizer {name}: {key}={value} is out of range"):
            optimizers.make(f"{name}({key}={value})")
    optimizers.make(f"{name}({key}=0.5)")


@pytest.mark.parametrize("text", ["polyak(f_min=-1.0)", "momo(lower_bound=-1.0)", "momo_adam(lower_bound=-1.0)"])
def test_a_loss_may_be_negative(text):
    optimizers.make(text)


def test_the_text_has_the_last_word():
    text = "adamw(learning_rate=0.5, weight_decay=0.25)"
    _, state = steps(optimizers.make(text, learning_rate=0.1, weight_decay=0.1))
    assert float(state.hyperparams["learning_rate"]) == 0.5
    assert float(state.hyperparams["weight_decay"]) == 0.25


def test_floats_are_leaves_and_the_rest_is_not():
    optimizer = optimizers.make("adamw", clip_norm=1.0, ema=0.9, max_norm=2.0)
    found = optimizer.init(PARAMS).hyperparams
    assert set(found) == {"learning_rate", "schedule", "b1", "b2", "eps", "weight_decay"} | {
        "clip_norm",
        "ema",
        "max_norm",
    }
    assert all(x.dtype == jnp.float32 and x.shape == () for x in found.values())


@pytest.mark.parametrize("text", ["momentum", "rprop", "adam", "schedule_free_sgd"])
def test_hyperparameters_set_later_act_like_those_set_at_first(text):
    first = optimizers.make(text, learning_rate=0.3)
    other = optimizers.make(text, learning_rate=0.1)
    state = optimizers.with_hyperparameters(other.init(PARAMS), {"learning_rate": 0.3})
    updates, state = other.update(GRADS, state, PARAMS)
    expected, _ = first.update(GRADS, first.init(PARAMS), PARAMS)
    close(updates, expected)
    assert float(optimizers.current_learning_rate(state)) == pytest.approx(0.3)


def test_a_sweep_vmaps_over_the_hyperparameters_of_the_state():
    optimizer = optimizers.make("momentum", weight_decay=0.1, clip_norm=1.0)
    grid = {"learning_rate": jnp.array([0.1, 0.2]), "weight_decay": jnp.array([0.0, 0.5])}

    def run(hyperparameters):
        state = optimizers.with_hyperparameters(optimizer.init(PARAMS), hyperparameters)
        return optimizer.update(GRADS, state, PARAMS)[0]

    swept = jax.jit(jax.vmap(run))(grid)
    alone = [
        run({"learning_rate": 0.1, "weight_decay": 0.0}),
        run({"learning_rate": 0.2, "weight_decay": 0.5}),
    ]
    close(swept, jax.tree.map(lambda *lanes: jnp.stack(lanes), *alone))


def test_what_init_reads_can_be_swept_at_init():
    optimizer = optimizers.make("adagrad")
    accumulator = jnp.array([0.5, 2.0])
    states = jax.vmap(lambda x: optimizer.init(PARAMS, {"initial_accumulator_value": x}))(accumulator)
    sums = states.inner_state["optimizer"]["bias"]
    close(sums, jnp.broadcast_to(accumulator[:, None], (2, 2)))


@pytest.mark.parametrize("name", ["b7", "schedule"])
def test_unknown_hyperparameters_are_refused(name):
    optimizer = optimizers.make("adam")
    state = optimizer.init(PARAMS)
    with pytest.raises(UserError, match="unknown hyperparameter"):
        optimizers.with_hyperparameters(state, {name: 1.0})
    with pytest.raises(UserError, match="unknown hyperparameter"):
        optimizer.init(PARAMS, {name: 1.0})


@pytest.mark.parametrize("name", ["minibatch_sgd", "adam", "dog", "lookahead", "prodigy", "schedule_free_sgd"])
def test_parameters_and_state_share_no_buffer(name):
    params = jax.tree.map(jnp.copy, PARAMS)
    leaves = jax.tree.leaves((params, optimizers.make(name).init(params)))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_the_schedule_multiplies_the_peak():
    schedule = schedules.make("linear(warmup=2, final=0.5)", 6)
    optimizer = optimizers.make("minibatch_sgd", learning_rate=0.3, schedule=schedule)
    update = jax.jit(optimizer.update)
    state = optimizer.init(PARAMS)
    for step in range(8):
        updates, state = update(GRADS, state, PARAMS)
        rate = 0.3 * float(schedule(step))
        close(updates["kernel"], -rate * GRADS["kernel"])
        assert float(optimizers.current_learning_rate(state)) == pytest.approx(rate)


def test_a_plateau_reduces_the_rate_as_torchs_does():
    torch = pytest.importorskip("torch")
    losses = np.array([5, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2], np.float32)
    sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    # torch reduces after more than `patience` bad values, optax after `patience`.
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, "min", 0.5, 1, threshold=1e-3, cooldown=1)
    schedule = schedules.make("plateau(factor=0.5, patience=2, window=1, tolerance=1e-3, cooldown=1)", 16, 4)
    optimizer = optimizers.make("minibatch_sgd", learning_rate=1.0, schedule=schedule)
    state = optimizer.init(PARAMS)
    update = jax.jit(lambda state, loss: optimizer.update(GRADS, state, PARAMS, value=loss)[1])
    for loss in losses:
        state = update(state, loss)
        assert float(optimizers.current_learning_rate(state)) == sgd.param_groups[0]["lr"]
        reference.step(float(loss))
    assert sgd.param_groups[0]["lr"] < 0.3, "the case is too easy"


def test_a_plateau_warms_up_averages_over_its_window_and_vmaps():
    schedule = schedules.make("plateau(warmup=2, factor=0.5, patience=1, window=2)", 8)
    optimizer = optimizers.make("minibatch_sgd", learning_rate=1.0, schedule=schedule)

    def rates(losses):
        def step(state, loss):
            _, state = optimizer.update(GRADS, state, PARAMS, value=loss)
            return state, optimizers.current_learning_rate(state)

        return jax.lax.scan(step, optimizer.init(PARAMS), losses)[1]

    falls = [8.0, 2.0, 6.0, 2.0, 5.0, 1.0, 4.0, 0.0]  # from window to window, though not from step to step
    stays = [1.0] * 8
    found = jax.jit(jax.vmap(rates))(jnp.array([falls, stays]))
    close(found[0], [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])
    close(found[1], [1 / 3, 2 / 3, 1, 1, 0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("text", ["minibatch_sgd", "adam", "rmsprop", "lion", "nadamw", "muon", "novograd", "sophia"])
def test_weight_decay_is_decoupled_and_spares_biases(text):
    def update(weight_decay):
        optimizer = optimizers.make(text, learning_rate=0.1, weight_decay=weight_decay)
        return jax.jit(partial(optimizer.update, value_fn=optax.tree.sum))(GRADS, optimizer.init(PARAMS), PARAMS)[0]

    without, decayed = update(0.0), update(0.5)
    close(decayed["bias"], without["bias"])
    close(decayed["kernel"], without["kernel"] - 0.1 * 0.5 * PARAMS["kernel"])


def test_clipping_comes_first():
    norm = float(optax.tree.norm(GRADS))
    params, _ = steps(optimizers.make("minibatch_sgd", learning_rate=1.0, clip_norm=norm / 4))
    close(params, jax.tree.map(lambda p, g: p - g / 4, PARAMS, GRADS))


def test_max_norm_comes_last():
    params, _ = steps(optimizers.make("minibatch_sgd", learning_rate=1.0, max_norm=1.0))
    free = np.asarray(PARAMS["kernel"] - GRADS["kernel"])
    close(params["kernel"], free / np.maximum(np.sqrt(np.square(free).sum(0)), 1.0))
    close(params["bias"], PARAMS["bias"] - GRADS["bias"])


def test_the_average_is_evaluated_and_not_trained():
    optimizer = optimizers.make("minibatch_sgd", learning_rate=1.0, ema=0.5)
    close(optimizer.evaluation_params(optimizer.init(PARAMS), PARAMS), PARAMS)
    params, state = steps(optimizer, 2)
    mean = jax.tree.map(lambda p, g: ((p - g) + 2 * (p - 2 * g)) / 3, PARAMS, GRADS)
    close(params, jax.tree.map(lambda p, g: p - 2 * g, PARAMS, GRADS))
    close(optimizer.evaluation_params(state, params), mean)


def test_an_average_of_slow_weights_averages_the_slow_weights():
    optimizer = optimizers.make("lookahead(sync_period=100)", ema=0.5)
    params, state = steps(optimizer, 3)
    close(optimizer.evaluation_params(state, params), PARAMS)
    assert np.any(params["bias"] != PARAMS["bias"])


def test_batch_sizes_are_those_of_the_method():
    sizes = {"sgd": 1, "gradient_descent": "full", "lbfgs": "full", "rprop": "full", "adam": None}
    assert {name: optimizers.make(name).batch_size for name in sizes} == sizes
