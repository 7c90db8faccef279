"""States to save, and how two compare."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    rng: Any


def make(step, width=4):
    params = {"Dense_0": {"kernel": jax.random.normal(jax.random.key(step), (3, width)), "bias": jnp.ones(width)}}
    return State(jnp.int32(step), params, optax.adam(0.1).init(params), jax.random.key(step))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def of_step(directory, step):
    """The path of the one checkpoint of a step."""
    (path,) = pathlib.Path(directory).glob(f"{step:09d}-*")
    return path
