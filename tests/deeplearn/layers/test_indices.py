"""An index out of range is NaN, where JAX would take the nearest or count from the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deeplearn.layers import indices

TABLE = jnp.arange(1.0, 7.0).reshape(3, 2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64"])
@given(index=st.integers(-(2**63), 2**64 - 1), size=st.sampled_from([1, 2, 3, None]))
@settings(deadline=None, max_examples=20)
@example(index=3, size=None)
@example(index=-1, size=None)
@example(index=2, size=2)
@example(index=2**32 + 1, size=None)
@example(index=2**31, size=None)
def test_rows(dtype, index, size):
    """Of every integer dtype, also those of 64 bits whose low half would be in range."""
    limits = np.iinfo(dtype)
    index = min(max(index, limits.min), limits.max)
    with jax.enable_x64(True):
        found = indices.rows(TABLE, jnp.array([index], dtype), size)
    known = 0 <= index < (size or 3)
    np.testing.assert_array_equal(found[0], TABLE[index] if known else [np.nan, np.nan])


def test_the_gradient_of_what_exists():
    """A row gets the gradients of its lookups, and none of those that do not exist."""

    def total(table, index):
        return jnp.where(jnp.isnan(x := indices.rows(table, index)), 0.0, x).sum()

    gradient = jax.grad(total)(TABLE, jnp.array([[0, 2, 2], [3, -1, 7]]))
    np.testing.assert_array_equal(gradient, [[1, 1], [0, 0], [2, 2]])


def test_under_jit_and_vmap():
    found = jax.jit(jax.vmap(indices.rows, (None, 0)))(TABLE.astype(jnp.bfloat16), jnp.array([[0, 1], [2, 9]]))
    assert found.dtype == jnp.bfloat16 and jnp.isnan(found).tolist() == [[[False] * 2] * 2, [[False] * 2, [True] * 2]]
