"""Self-attention against PyTorch's; attention itself has its tests with the kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.layers.attention import SelfAttention

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


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
