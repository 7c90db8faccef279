import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.fusion import apart


def alone(x, y):
    return apart(lambda x, y: jnp.sin(x) * y, x + 1, y)


def test_nothing_is_fused_with_it():
    """The compiled program keeps the condition; without `apart` it is one loop."""
    x = jnp.linspace(-1, 1, 1000)
    program = jax.jit(lambda x: alone(x, x) * 2).lower(x).compile().as_text()
    assert "conditional(" in program
    np.testing.assert_allclose(alone(x, x), jnp.sin(x + 1) * x, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_it_holds_for_every_number(bad):
    assert not jnp.isfinite(jax.jit(lambda x: apart(lambda x: x * 2, x))(jnp.full(3, bad))).any()


def test_its_derivative_and_its_batches():
    x, y = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.linspace(0, 3, 12).reshape(3, 4)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda x, y: alone(x, y).sum()))(x, y), jnp.cos(x + 1) * y, rtol=1e-5)


def test_within_shard_map():
    x = jnp.arange(8.0)
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.shard_map(lambda x: alone(x, jnp.float32(2)), mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    np.testing.assert_allclose(jax.jit(divided)(x), 2 * jnp.sin(x + 1), rtol=1e-6)
