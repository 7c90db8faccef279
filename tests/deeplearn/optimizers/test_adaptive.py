import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn import optimizers


@pytest.mark.parametrize("step", [1, 2, 3])
def test_sophia_divides_by_the_hessian_of_its_last_estimate(step):
    """Of a diagonal Hessian the estimate is exact; every other step keeps the last one."""
    hessians = jnp.array([[100.0, 400.0], [1e3, 1e3], [200.0, 50.0]])
    sophia = optimizers.make("sophia(b1=0, b2=0, gamma=1, update_interval=2)", learning_rate=0.5, weight_decay=0.0)
    params = {"w": jnp.array([1e-3, 1e-3])}
    state = sophia.init(params)
    for hessian in hessians[:step]:

        def quadratic(params, hessian=hessian):
            return 0.5 * (hessian * params["w"] ** 2).sum()

        grads = jax.grad(quadratic)(params)
        updates, state = sophia.update(grads, state, params, value_fn=quadratic)
    expected = -0.5 * np.clip(grads["w"] / hessians[(step - 1) // 2 * 2], -1, 1)
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
