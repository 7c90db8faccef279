import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deeplearn.data import order
from deeplearn.errors import UserError

KEY = jax.random.key(7)
chunk_indices = jax.jit(order.chunk_indices, static_argnums=(2, 3, 4))


def stream(key, start, stop, size):
    """The definition, one position at a time."""
    epochs = range(start // size, (stop - 1) // size + 1)
    whole = np.concatenate([np.asarray(order.permutation(key, epoch, size)) for epoch in epochs])
    return whole[start - epochs[0] * size : stop - epochs[0] * size]


def permutations(size, epochs):
    every = jnp.arange(epochs, dtype=jnp.uint32)
    return np.asarray(jax.vmap(lambda epoch: order.permutation(KEY, epoch, size))(every))


# Sizes and batches that divide each other, that do not, batches of one example, of all and of more than all.
SHAPES = [(10, 5), (10, 3), (7, 7), (5, 1), (1, 3), (3, 8)]


@pytest.mark.parametrize("steps, batch_size, size", [(2**25, 64, 1), (2**31, 1, 1), (1, 1, 2**31 - 1)])
def test_more_indices_than_32_bits(steps, batch_size, size):
    """Traced alone: were it not refused, gigabytes would be computed."""
    with pytest.raises(UserError, match="has more indices than 32 bits hold; lower config.log_every"):
        jax.eval_shape(lambda: order.chunk_indices(KEY, 0, steps, batch_size, size))


@pytest.mark.parametrize("size, batch_size", SHAPES)
def test_chunk_is_the_slice_of_the_stream(size, batch_size):
    for step in (0, 3, 11):
        chunk = chunk_indices(KEY, step, 4, batch_size, size)
        assert chunk.shape == (4, batch_size) and chunk.dtype == jnp.int32
        expected = stream(KEY, step * batch_size, (step + 4) * batch_size, size)
        np.testing.assert_array_equal(np.ravel(chunk), expected)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_have_one_stream_too(impl):
    """Whose draws in a vmap depend on what else is in it: an epoch would be another in each chunk, and on the host."""
    key, size, batch_size = jax.random.key(7, impl=impl), 10, 3
    expected = stream(key, 0, 60, size)
    np.testing.assert_array_equal(np.sort(expected.reshape(6, 10), axis=1), np.tile(np.arange(10), (6, 1)))
    for steps in (4, 20):
        chunks = [chunk_indices(key, step, steps, batch_size, size) for step in range(0, 20, steps)]
        np.testing.assert_array_equal(np.ravel(np.concatenate(chunks)), expected)
    np.testing.assert_array_equal(order.indices(key, np.arange(60), size), expected)


def test_each_epoch_holds_each_example_once():
    epochs = np.asarray(chunk_indices(KEY, 7, 20, 3, 10)).ravel()[9:59].reshape(5, 10)  # position 30 is epoch 3's
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (5, 1)))
    assert len(np.unique(epochs, axis=0)) == 5


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1), st.integers(0, 1000))
@example([1], 3)
@example([3, 1], 0)
@example([2, 2, 2], 333)
def test_any_chunking_gives_the_same_stream(lengths, start):
    size, batch_size = 10, 3
    steps = np.cumsum([start, *lengths])
    chunks = [
        chunk_indices(KEY, int(step), length, batch_size, size)
        for step, length in zip(steps[:-1], lengths, strict=True)
    ]
    whole = order.indices(KEY, np.arange(steps[0] * batch_size, steps[-1] * batch_size), size)
    np.testing.assert_array_equal(np.ravel(np.concatenate(chunks)), whole)


place = jax.jit(order._place, static_argnums=(1, 2))


@settings(max_examples=100, deadline=None)
@example(3, (1, 3))  # remainders add up to an epoch
@given(
    st.one_of(st.integers(0, 2**31 - 1), st.integers(0, 1000)),
    st.sampled_from([(1, 1), (64, 54_000), (4096, 1_281_167), (2**20, 1437), (3, 2**31 - 1)]),
)
@example(2**31 - 1, (2**20, 1437))
@example(2**31 - 1, (3, 2**31 - 1))
@example(843, (64, 54_000))
@example(844, (64, 54_000))
@example(0, (1, 1))
def test_place_is_exact_beyond_32_bits(step, shape):
    batch_size, size = shape
    epoch, offset = place(jnp.int32(step), batch_size, size)
    expected_epoch, expected_offset = divmod(step * batch_size, size)
    assert (int(epoch), int(offset)) == (expected_epoch % 2**32, expected_offset)


def test_host_equals_device_far_along():
    step, batch_size, size = 2**31 - 3, 4096, 10_000
    positions = (np.int64(step) + np.arange(2))[:, None] * batch_size + np.arange(batch_size)
    chunk = chunk_indices(KEY, step, 2, batch_size, size)
    np.testing.assert_array_equal(order.indices(KEY, positions, size), chunk)


def test_indices_take_positions_in_any_order_and_shape():
    positions = np.array([[25, 3], [14, 25]])
    whole = stream(KEY, 0, 30, 10)
    np.testing.assert_array_equal(order.indices(KEY, positions, 10), whole[positions])


def test_vmap_over_keys_and_steps():
    keys = jax.random.split(KEY, 3)
    steps = jnp.arange(3, dtype=jnp.int32)
    chunks = jax.jit(jax.vmap(lambda key, step: order.chunk_indices(key, step, 2, 4, 11)))(keys, steps)
    for key, step, chunk in zip(keys, range(3), chunks, strict=True):
        np.testing.assert_array_equal(np.ravel(chunk), stream(key, 4 * step, 4 * step + 8, 11))
    assert not (chunks[0] == chunks[1]).all()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_every_kind(impl):
    key = jax.random.key(3, impl=impl)
    np.testing.assert_array_equal(order.indices(key, np.arange(25), 10), stream(key, 0, 25, 10))


def test_different_keys_give_different_orders():
    one, other = (order.indices(key, np.arange(50), 50) for key in (KEY, jax.random.key(8)))
    assert not (one == other).all()


def test_full_batches_shuffle_once_a_step():
    """They never straddle two epochs, so one permutation will do."""
    jaxpr = jax.make_jaxpr(lambda: order.chunk_indices(KEY, 3, 1, 50, 50))()
    shapes = [eqn.outvars[0].aval.shape for eqn in jaxpr.eqns]
    assert (50,) in shapes and (100,) not in shapes


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_permutations_are_equally_likely(size):
    """Chi-square over all size! orders in 20,000 epochs of one fixed key."""
    _, counts = np.unique(permutations(size, 20_000), axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_permutations_keep_no_trace_of_what_they_shuffle():
    """Fixed points are Poisson(1); correlations with the identity, next epoch and neighbour are noise."""
    size, epochs = 1000, 400
    drawn = permutations(size, epochs)
    assert abs((drawn == np.arange(size)).sum(axis=1).mean() - 1) < 4 / np.sqrt(epochs)
    ranks = (drawn - (size - 1) / 2) / np.std(np.arange(size))
    identity = (np.arange(size) - (size - 1) / 2) / np.std(np.arange(size))
    products = {
        "identity": ranks * identity,
        "next epoch": ranks[:-1] * ranks[1:],
        "neighbour": ranks[:, :-1] * ranks[:, 1:],
    }
    for name, product in products.items():
        correlation = product.mean(axis=1) * np.sqrt(size)  # standard normal for each epoch
        assert abs(correlation.mean()) < 4 / np.sqrt(epochs), name
        assert 0.8 < correlation.std() < 1.2, name
