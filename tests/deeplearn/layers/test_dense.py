"""The dense layer against Flax's."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.layers.dense import Dense

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


@pytest.mark.parametrize("shape, features", [((6, 3), 5), ((2, 3, 7), 4), ((2, 2, 2, 3), 6), ((2, 3, 4), 4)])
def test_it_is_flaxs_layer(shape, features):
    x = jax.random.normal(jax.random.key(1), shape)
    ours, flax = Dense(features), nn.Dense(features)
    params = flax.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), x), params)

    def value_and_gradients(layer):
        return jit(jax.value_and_grad(lambda params, x: jnp.sin(layer.apply(params, x)).sum(), argnums=(0, 1)))(
            params, x
        )

    found, expected = value_and_gradients(ours), value_and_gradients(flax)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_bfloat16():
    layer, x = Dense(4, jnp.bfloat16), jnp.ones((2, 3))
    params = layer.init(jax.random.key(0), x)
    assert layer.apply(params, x).dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
