"""The key of a run is all of its seed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.training import state

SEEDS = [0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1]


def bits(key):
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_key_of_a_seed(seed, x64):
    """That of JAX for as many bits; as an integer of Python, of NumPy, or traced."""
    with jax.enable_x64(x64):
        expected = bits(jax.random.key(seed))
        assert bits(state.key(seed)) == bits(state.key(np.int64(seed))) == expected
        assert bits(jax.jit(state.key)(jnp.uint32(seed))) == expected
    assert expected == bits(state.key(seed))


def test_seeds_have_keys_of_their_own():
    assert len({str(bits(state.key(seed))) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 7, 2**63, 10**30, np.int64(-5), True])
def test_other_seeds_are_refused(seed):
    with pytest.raises(UserError, match="seed is .*; it must be"):
        state.key(seed)


def test_parameters_are_drawn_with_a_key_of_their_own():
    params, _, rng = state.begin(SimpleNamespace(init=lambda rng: (rng, {})), 3)
    assert bits(rng) == bits(state.key(3))
    assert bits(params) == bits(jax.random.fold_in(rng, state.INIT))
    assert len({state.INIT, state.ORDER, state.STEP, state.EVALUATE}) == 4
