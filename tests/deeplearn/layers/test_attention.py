"""Attention against JAX's own and PyTorch's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.layers.attention import SelfAttention, attention

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


def inputs(dtype=jnp.float32, scale=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    return [scale * jax.random.normal(key, (2, 5, 3, 4), dtype) for key in keys]  # (B, T, heads, D)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])  # at 30 the exponentials of the scores overflow
def test_it_and_its_gradient_are_jaxs(scale):
    def value_and_gradient(function):
        return jit(jax.value_and_grad(lambda qkv: jnp.sin(function(*qkv)).sum()))(inputs(scale=scale))

    found, expected = value_and_gradient(attention), value_and_gradient(jax.nn.dot_product_attention)
    tolerance = 1e-4 * max(scale, 1)  # a gradient of zero is the difference of two that grow with the inputs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance), found, expected)


def test_bfloat16_is_close_to_float32():
    found = jit(attention)(*inputs(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    exact = jit(attention)(*(x.astype(jnp.float32) for x in inputs(jnp.bfloat16)))
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


def test_the_layer_is_pytorchs():
    torch = pytest.importorskip("torch")
    layer, x = SelfAttention(heads=4), jax.random.normal(jax.random.key(1), (2, 5, 16))
    params = jit(layer.init)(jax.random.key(0), x)["params"]
    peer = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    values = {
        peer.in_proj_weight: params["qkv"]["kernel"].T,
        peer.in_proj_bias: params["qkv"]["bias"],
        peer.out_proj.weight: params["out"]["kernel"].T,
        peer.out_proj.bias: params["out"]["bias"],
    }
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(torch.tensor(np.array(value)))
    t = torch.tensor(np.array(x))
    expected, _ = peer(t, t, t)
    np.testing.assert_allclose(jit(layer.apply)({"params": params}, x), expected.detach(), atol=1e-5)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(UserError, match="5 heads do not divide the width, 16"):
        SelfAttention(heads=5).init(jax.random.key(0), jnp.ones((1, 4, 16)))
