import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.layers.convolution import Conv, ConvTranspose


@pytest.mark.parametrize(
    "options, theirs",
    [
        ({}, {}),
        ({"use_bias": False, "strides": 2}, {"use_bias": False, "strides": 2}),
        ({"kernel_size": (5, 5), "padding": 1}, {"kernel_size": (5, 5), "padding": 1}),
        ({"dilation": 2, "groups": 4}, {"kernel_dilation": 2, "feature_group_count": 4}),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_linen(options, theirs, dtype, key):
    x = jax.random.normal(key, (2, 9, 8, 4))
    layer = Conv(8, dtype=dtype, **options)
    reference = nn.Conv(8, **{"kernel_size": (3, 3), **theirs})
    variables, expected = layer.init(key, x), reference.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    y = layer.apply(variables, x)
    assert y.dtype == dtype and all(w.dtype == jnp.float32 for w in jax.tree.leaves(variables))
    bound = 2e-6 if dtype == jnp.float32 else 1e-2
    want = np.asarray(reference.apply(variables, x), np.float64)
    assert np.linalg.norm(np.asarray(y, np.float64) - want) <= bound * np.linalg.norm(want)


@pytest.mark.parametrize("groups", [0, 2, 4])
def test_groups_that_do_not_divide(groups, key):
    with pytest.raises(ValueError, match=rf"groups {groups} doesn't divide the channels of x \(1, 8, 8, 3\)"):
        Conv(8, groups=groups).init(key, jnp.ones((1, 8, 8, 3)))


@pytest.mark.parametrize("kernel_size, strides", [((4, 4), 2), ((3, 3), 1), ((3, 2), (2, 1))])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_transpose_is_linens(kernel_size, strides, padding, key):
    """With the kernel turned around."""
    x = jax.random.normal(key, (2, 5, 6, 4))
    layer = ConvTranspose(8, kernel_size, strides, padding)
    reference = nn.ConvTranspose(8, kernel_size, (strides,) * 2 if isinstance(strides, int) else strides, padding)
    variables = layer.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, variables, reference.init(key, x))
    turned = jax.tree.map(lambda a: a[::-1, ::-1] if a.ndim == 4 else a, variables)
    np.testing.assert_allclose(layer.apply(variables, x), reference.apply(turned, x), rtol=1e-4, atol=1e-5)
    assert layer.clone(dtype=jnp.bfloat16, use_bias=False).apply(variables, x).dtype == jnp.bfloat16
