"""Drawing tokens: which are left, how often each comes, and text after text by the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deeplearn import sampling
from deeplearn.errors import UserError
from deeplearn.models import gpt

LOGITS = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.25, 0.05]]))


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (0, 1.0, {0, 1, 2, 3, 4}),
        (1, 1.0, {1}),
        (2, 1.0, {1, 3}),
        (99, 1.0, {0, 1, 2, 3, 4}),
        (0, 0.39, {1}),
        (0, 0.0, {1}),
        (0, 0.41, {1, 3}),
        (0, 0.64, {1, 3}),
        (0, 0.66, {1, 2, 3}),
        (3, 0.5, {1, 3}),  # of 0.4, 0.25, 0.2 the first has 0.47
        (3, 0.45, {1}),
    ],
)
def test_what_is_left(top_k, top_p, kept):
    left = sampling.truncate(LOGITS, top_k, top_p)
    assert set(np.flatnonzero(np.isfinite(left[0]))) == kept
    np.testing.assert_array_equal(left[0, jnp.array(sorted(kept))], LOGITS[0, jnp.array(sorted(kept))])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_nan_give_no_token(temperature):
    logits = jnp.array([[0.0, jnp.nan, 1.0], [0.0, 5.0, -jnp.inf]])
    found = sampling.draw(jax.random.key(0), logits, temperature, 0, 1.0)
    assert found[0] == -1 and found[1] in (0, 1)


@pytest.mark.parametrize("token", [11, 300, -1])
def test_a_prompt_that_the_model_does_not_know(token):
    with pytest.raises(UserError, match="the logits are NaN: the prompt has tokens unknown to the model"):
        text([1, token, 2], 3)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"temperature": float("nan")}, "temperature is nan; it must be a finite number, at least 0"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
        ({"top_k": -1}, "top_k is -1; it must be at least 0"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be at most 1"),
        ({"length": 1}, "length is 1; it must be at least 2"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(UserError, match=said):
        text([1, 2], 3, **options)


def test_what_comes_to_p_exactly_is_enough():
    assert np.isfinite(sampling.truncate(jnp.zeros((1, 4)), top_p=0.5)).tolist() == [[True, True, False, False]]


def test_p_is_of_the_probabilities_that_are_drawn_from():
    """At temperature 1 the first token alone comes to 0.5; at temperature 10 it has 0.29, and takes a second one."""
    logits = jnp.tile(jnp.array([[2.0, 0.0, 0.0, 0.0]]), (50, 1))
    assert len(set(sampling.draw(jax.random.key(0), logits, 1.0, 0, 0.5).tolist())) == 1
    assert len(set(sampling.draw(jax.random.key(0), logits, 10.0, 0, 0.5).tolist())) == 2


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12), st.integers(0, 14), st.floats(0, 1, width=32))
@example([1.0, 1.0], 1, 1.0)
@example([1.0, 1.0], 0, 0.0)
@example([0.0], 14, 0.5)
@example([-20.0, 20.0, 20.0], 2, 0.5)
def test_the_likeliest_always_stays(logits, top_k, top_p):
    logits = jnp.array([logits], jnp.float32)
    left = sampling.truncate(logits, top_k, top_p)
    assert left[0, jnp.argmax(logits[0])] == logits.max()
    assert ((left == logits) | (left == -jnp.inf)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_how_often_each_comes(temperature):
    """4,000 draws, each share within four standard deviations."""
    count = 4000
    tokens = sampling.draw(jax.random.key(0), jnp.tile(LOGITS, (count, 1)), temperature, 0, 1.0)
    wanted = jax.nn.softmax(LOGITS[0] / temperature)
    shares = jnp.bincount(tokens, length=5) / count
    assert (jnp.abs(shares - wanted) < 4 * jnp.sqrt(wanted * (1 - wanted) / count)).all()


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-30, 1e-7])
def test_greedy_takes_the_first_of_the_likeliest(temperature):
    logits = jnp.array([[-50.0, -30.0, -30.0]])
    assert sampling.draw(jax.random.key(0), logits, temperature, 0, 1.0).tolist() == [1]


def model(length=8):
    architecture = gpt.Architecture(vocabulary=7, length=length, width=16, depth=2, heads=2, positions="rotary")
    network = gpt.GPT(architecture)
    params = network.init(jax.random.key(0), jnp.zeros((1, length), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    step = lambda params, tokens, cache: network.apply({"params": params}, tokens, cache=cache)  # noqa: E731
    return network, params, step, gpt.empty(architecture, 1)


def text(prompt, count, length=8, seed=0, **options):
    _, params, step, empty = model(length)
    found = sampling.generate(step, params, empty, length, np.array([prompt]), count, jax.random.key(seed), **options)
    return [int(token[0]) for token in found]


def test_greedy_text_is_that_of_whole_forward_passes():
    network, params, *_ = model(length=20)
    tokens = [3, 1, 4]
    for _ in range(10):
        tokens.append(int(network.apply({"params": params}, jnp.array([tokens]))[0, -1].argmax()))
    assert text([3, 1, 4], 10, length=20, temperature=0.0) == tokens[3:]


def test_the_seed_decides_the_text():
    assert text([1, 2], 12, seed=1) == text([1, 2], 12, seed=1)
    assert len({tuple(text([1, 2], 12, seed=seed)) for seed in range(4)}) == 4


def test_each_token_has_a_key_of_its_own():
    key, flat = jax.random.key(0), jnp.zeros((1, 7))
    step = lambda params, tokens, cache: (jnp.zeros((1, tokens.shape[1], 7)), cache)  # noqa: E731
    found = [int(token[0]) for token in sampling.generate(step, None, jnp.int32(0), 32, np.array([[0]]), 12, key)]
    assert found == [int(sampling.draw(jax.random.fold_in(key, n), flat, 1.0, 0, 1.0)[0]) for n in range(12)]
    assert len(set(found)) > 3


def test_text_goes_on_beyond_the_length():
    """The last half is read anew: what comes then depends on no more than that."""
    found = text([1, 2, 3], 20, temperature=0.0)
    assert len(found) == 20
    # 8 tokens are full: the ninth is drawn from all of them, and read after the last four.
    network, params, *_ = model()
    whole = [1, 2, 3, *found]
    for seen, at in ((whole[:8], 8), (whole[4:9], 9), (whole[4:10], 10)):
        assert int(network.apply({"params": params}, jnp.array([seen]))[0, -1].argmax()) == whole[at]


def test_a_long_prompt_is_read_from_its_end():
    assert text([5, 6, *range(7), 0], 3, temperature=0.0) == text([*range(7), 0], 3, temperature=0.0)


def test_one_program_a_token():
    """What is traced: reading once, advancing once."""
    _, params, step, empty = model(length=32)
    traced = []

    def counted(params, tokens, cache):
        traced.append(tokens.shape)
        return step(params, tokens, cache)

    list(sampling.generate(counted, params, empty, 32, np.array([[1, 2]]), 10, jax.random.key(0)))
    assert traced == [(1, 2), (1, 1)]
