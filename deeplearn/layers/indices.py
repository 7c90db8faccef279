"""Lookups by an index that may be out of range."""

import jax
import jax.numpy as jnp

BEYOND = 2**31 - 1  # an index that no array has


def in_range(indices: jax.Array, size: int) -> jax.Array:
    """The indices as int32; those outside of [0, size) are one that lookups with mode "fill" answer with NaN.

    As JAX has them, a negative index counts from the end, and one too large is the last: labels and tokens that do not
    exist would train as others.

    >>> in_range(jnp.array([0, 2, 3, -1]), 3).tolist()
    [0, 2, 2147483647, 2147483647]
    """
    wide = indices if indices.dtype.itemsize >= 4 else indices.astype(jnp.int32)  # compared before 64 bits become 32
    return jnp.where((wide >= 0) & (wide < size), wide, BEYOND).astype(jnp.int32)


def rows(table: jax.Array, indices: jax.Array, size: int | None = None) -> jax.Array:
    """The rows of a table (N, D) of floats by their indices (...), integers: (..., D); NaN for one that does not exist.

    size: how many of the N rows exist; all unless given.

    >>> rows(jnp.array([[1.0], [2.0]]), jnp.array([1, 2, -1])).ravel().tolist()
    [2.0, nan, nan]
    """
    indices = in_range(indices, table.shape[0] if size is None else size)
    return table.at[indices].get(mode="fill", fill_value=jnp.nan)
