"""A state as named arrays that any file format can hold, and back."""

from typing import Any

import jax
import jax.numpy as jnp


def named(tree: Any) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
    """The leaves of a tree by path; NumPy arrays and Python numbers as `jnp.asarray` makes them.

    Raises:
      ValueError: two leaves have one path, as those of {"a/b": 1, "a": {"b": 2}}.

    >>> list(named({"params": {"Dense_0": {"bias": jnp.zeros(3)}}, "step": 1}))
    ['params/Dense_0/bias', 'step']
    """
    leaves = jax.tree.leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if len(set(names)) < len(names):
        raise ValueError("two leaves of the state have the same path")
    arrays = (jax.Array, jax.ShapeDtypeStruct)
    values = [leaf if isinstance(leaf, arrays) else jnp.asarray(leaf) for _, leaf in leaves]
    return dict(zip(names, values, strict=True))


def spec(leaf) -> tuple[list[int], str]:
    """Shape and dtype as JSON holds them, those of a PRNG key included.

    >>> spec(jnp.zeros((2, 3))), spec(jax.random.key(0))
    (([2, 3], 'float32'), ([], 'key<fry>'))
    """
    return list(leaf.shape), str(leaf.dtype)


def is_key(leaf) -> bool:
    """Whether it is an array of typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data(leaf):
    """PRNG keys as their words, (..., 2) uint32 for Threefry; all else as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def abstract_data(leaf) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of `data(leaf)`; without a sharding, the default device."""
    words = jax.eval_shape(data, leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)


def restore(leaf, array):
    """The inverse of `data`: `array` as what `leaf`, an array or a jax.ShapeDtypeStruct, is.

    >>> key = jax.random.key(3)
    >>> bool(restore(key, data(key)) == key)
    True
    """
    if not is_key(leaf):
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
