import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.layers import positions


def test_rotary_products_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def product(i, j):
        turned = [positions.rotate(x, jnp.array([at])) for x, at in ((query, i), (key, j))]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-3)


def test_rotary_is_a_rotation_of_complex_numbers():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    at = jnp.arange(11, 16)
    turned = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * np.exp(
        1j * np.asarray(at)[:, None, None] * 10_000.0 ** -(np.arange(4) / 4)
    )
    np.testing.assert_allclose(
        positions.rotate(x, at), np.concatenate([turned.real, turned.imag], axis=-1), rtol=1e-4, atol=1e-5
    )


def test_the_slopes_of_the_paper():
    """8 heads: 1/2 to 1/256 (section 3); 12: those, and every other one of 16."""
    eight = positions.alibi(8, 2)[0, :, 0, 1]
    np.testing.assert_allclose(eight, 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(positions.alibi(12, 2)[0, :, 0, 1], [*eight, *2.0 ** -np.array([0.5, 1.5, 2.5, 3.5])])
