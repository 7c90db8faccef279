"""Attention on a mesh against one device, and self-attention against PyTorch's; the rest is tested with the kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.layers import positions
from deeplearn.layers.attention import SelfAttention, attention
from deeplearn.parallel import mesh as meshes

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


CASES = {
    "causal": {"is_causal": True},
    "groups": {"groups": 2, "is_causal": True},
    "one key head": {"groups": 1},
    "heads that do not divide": {"heads": 3, "groups": 3},
    "key heads that do not divide": {"heads": 6, "groups": 3},
    "a bias of heads": {"groups": 2, "bias": positions.alibi(4, 16)},
    "a bias of examples": {"bias": jnp.linspace(0.0, 1.0, 8 * 16, dtype=jnp.float32).reshape(8, 1, 1, 16)},
    "a mask": {"mask": jnp.tri(16, dtype=bool)[None, None]},
    "dropout": {"groups": 2, "dropout_rate": 0.3, "dropout_rng": jax.random.key(3)},
    "dropout, one example": {"batch": 1, "dropout_rate": 0.3, "dropout_rng": jax.random.key(3)},
}
RING = ("causal", "groups", "one key head", "heads that do not divide")


@pytest.mark.parametrize(
    "case, text",
    [
        *((case, "data:2,fsdp:2,tensor:2") for case in CASES),
        *((case, "data:2,sequence:2,tensor:2") for case in RING),
        ("groups", "data:2,tensor:4"),  # more devices than key heads
    ],
)
def test_the_same_on_every_mesh(case, text):
    """Outputs and gradients, that of a bias too; what is dropped, to the bit."""
    asked = {"batch": 8, "heads": 4, "groups": 4, "bias": None} | CASES[case]
    batch, heads, groups, bias = (asked.pop(name) for name in ("batch", "heads", "groups", "bias"))
    qkv = [jax.random.normal(jax.random.key(i), (batch, 16, n, 8)) for i, n in enumerate((heads, groups, groups))]
    weigh = jax.random.normal(jax.random.key(5), qkv[0].shape)

    def compute(*learned):
        def loss(*learned):
            out = attention(*learned, **asked)
            return (out * weigh).sum(), out

        return jax.grad(loss, argnums=tuple(range(len(learned))), has_aux=True)(*learned)

    learned = qkv if bias is None else [*qkv, bias]
    mesh = meshes.parse(text)
    placed = jax.device_put(learned, meshes.replicated(mesh))
    wanted, found = jit(compute)(*learned), jit(meshes.within(mesh, compute))(*placed)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(UserError, match="5 heads do not divide the width, 16"):
        SelfAttention(heads=5).init(jax.random.key(0), jnp.ones((1, 4, 16)))
