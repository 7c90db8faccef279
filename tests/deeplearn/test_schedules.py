import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deeplearn import schedules
from deeplearn.errors import UserError

STATELESS = [name for name in schedules.SCHEDULES if name != "plateau"]


def values(text, steps, count=None):
    """The factors of the first `count` steps, from traced int32 counts."""
    schedule = schedules.make(text, steps)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(count or steps + 10, dtype=jnp.int32)))


def lambda_lr(function):
    return lambda torch, sgd: torch.optim.lr_scheduler.LambdaLR(sgd, function)


@pytest.mark.parametrize(
    "text, count, scheduler",
    [
        ("constant", 60, lambda_lr(lambda n: 1.0)),
        ("constant(warmup=9)", 60, lambda t, sgd: t.optim.lr_scheduler.LinearLR(sgd, 0.1, 1.0, 9)),
        ("linear(final=0.2)", 60, lambda t, sgd: t.optim.lr_scheduler.LinearLR(sgd, 1.0, 0.2, 50)),
        ("cosine(final=0.1)", 51, lambda t, sgd: t.optim.lr_scheduler.CosineAnnealingLR(sgd, 50, 0.1)),
        ("step(every=20, factor=0.3)", 60, lambda t, sgd: t.optim.lr_scheduler.StepLR(sgd, 20, 0.3)),
        (
            "exponential(final=0.02)",
            51,
            lambda t, sgd: t.optim.lr_scheduler.ExponentialLR(sgd, 0.02 ** (1 / 50)),
        ),
        ("inverse_square_root(warmup=0, timescale=5)", 60, lambda_lr(lambda n: (1 + n / 5) ** -0.5)),
    ],
)
def test_schedules_are_those_of_torch(text, count, scheduler):
    torch = pytest.importorskip("torch")
    sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = scheduler(torch, sgd)
    expected = []
    for _ in range(count):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        reference.step()
    np.testing.assert_allclose(values(text, 50, count), expected, rtol=2e-5, atol=1e-6)


def test_one_cycle_is_that_of_optax():
    expected = optax.cosine_onecycle_schedule(100, 1.0, pct_start=0.3, div_factor=25.0, final_div_factor=1e4)
    with jax.numpy_dtype_promotion("standard"):
        expected = [float(expected(n)) for n in range(110)]
    np.testing.assert_allclose(values("one_cycle", 100), expected, rtol=1e-5, atol=1e-7)


def test_warmup_and_cosine_join_as_in_optax():
    expected = jax.vmap(optax.warmup_cosine_decay_schedule(1 / 11, 1.0, 10, 100, 0.05))(jnp.arange(110.0))
    np.testing.assert_allclose(values("cosine(warmup=0.1, final=0.05)", 100), expected, atol=1e-6)


def test_vaswanis_schedule_is_the_inverse_square_root_with_equal_times():
    n = np.arange(200)
    vaswani = np.minimum((n + 1) / 41, np.sqrt(40 / np.maximum(n, 1)))  # 1 at the warm-up's end
    np.testing.assert_allclose(values("inverse_square_root(warmup=40, timescale=40)", 200, 200), vaswani, rtol=1e-5)


@given(
    name=st.sampled_from(STATELESS),
    warmup=st.one_of(st.floats(0.01, 0.9), st.integers(1, 40)),
    steps=st.integers(1, 60),
)
@example(name="one_cycle", warmup=1, steps=1)
@example(name="cosine", warmup=40, steps=1)
@example(name="linear", warmup=1, steps=2)
@example(name="step", warmup=0.9, steps=60)
@settings(max_examples=30, deadline=None)
def test_every_factor_is_a_fraction_and_every_warmup_rises(name, warmup, steps):
    factors = values(f"{name}(warmup={warmup})", steps, 100)
    ramp = schedules.in_steps(warmup, steps)
    assert factors.dtype == np.float32
    assert np.all((0 <= factors) & (factors <= 1))
    assert np.all(np.diff(factors[: ramp + 1]) > 0)
    assert np.all(np.diff(factors[max(ramp, 1) :]) <= 1e-6)
    np.testing.assert_allclose(factors[max(ramp, int(name == "one_cycle"))], 1.0, rtol=1e-6)
    assert factors[0] > 0


@pytest.mark.parametrize(
    "text, end",
    [
        ("linear", 0.0),
        ("linear(final=0.1)", 0.1),
        ("cosine(final=0.2)", 0.2),
        ("exponential", 0.01),
        ("one_cycle", 4e-6),
    ],
)
def test_after_its_end_a_schedule_stays(text, end):
    np.testing.assert_allclose(values(text, 100, 160)[100:], end, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("time, steps", [(0.1, 100), (0.25, 250), (1, 1), (40, 40), (0.999, 999)])
def test_a_time_below_one_is_a_fraction_of_the_run(time, steps):
    assert schedules.in_steps(time, 1000) == steps


@pytest.mark.parametrize("text, window", [("plateau", 20), ("plateau(window=7)", 7), ("plateau(window=0.5)", 50)])
def test_a_plateau_waits_in_epochs_unless_told_otherwise(text, window):
    assert schedules.make(text, 100, 20).window == window


@pytest.mark.parametrize(
    "text, message",
    [
        ("cosin", "did you mean cosine"),
        ("cosine(warm=0.1)", "did you mean warmup"),
        ("cosine(warmup=-1)", "warmup=-1.0 is out of range"),
        ("cosine(final=1.5)", "final=1.5 is out of range"),
        ("exponential(final=0)", "final=0.0 is out of range"),
        ("step(every=0)", "every=0.0 is out of range"),
        ("step(factor='a')", "is no number"),
        ("plateau(factor=1)", "factor=1.0 is out of range"),
        ("plateau(patience=0)", "patience=0 is out of range"),
        ("cosine(0.1)", "is not of the form"),
        ("cosine(warmup=1e999)", "warmup=inf is out of range"),
        ("cosine(warmup=1e300)", r"warmup=1e\+300 is out of range"),
        ("step(every=3000000000)", "every=3000000000.0 is out of range"),
        ("plateau(patience=9999999999)", "patience=9999999999 is out of range"),
        ("linear(final=True)", "final=True is no number"),
    ],
)
def test_mistakes_are_one_line_for_the_user(text, message):
    with pytest.raises(UserError, match=message) as error:
        schedules.make(text, 100)
    assert "\n" not in str(error.value)
