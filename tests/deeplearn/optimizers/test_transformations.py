import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplearn.optimizers import transformations
from deeplearn.roles import Role, by_shape


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
        "norm": {"scale": (4,), "bias": (2, 4)},  # a stack of biases
        "embed": {"embedding": (5, 4)},
        "dense": {"kernel": (4, 6), "bias": (6,)},
        "layers": {"dense": {"kernel": (3, 4, 6), "bias": (3, 6)}},  # of all, each one array
        "token_embedding": (5, 4),
    }

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def constant(params):
    return jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)


def close(x, y, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), x, y)


def of(params):
    """Roles by the names of the fixture's parameters."""

    def role(path, x):
        *_, name = names = [key.key for key in path]
        stack = (0,) if x.ndim > 1 and ("layers" in names or name == "bias") else ()
        axes = tuple(axis for axis in range(x.ndim) if axis not in stack)
        kind = {"kernel": "kernel", "embedding": "embedding", "token_embedding": "embedding"}.get(name, "vector")
        return Role(kind, axes[:-1], axes[-1:], stack) if kind != "vector" else Role(kind, (), axes, stack)

    return jax.tree_util.tree_map_with_path(role, params)


def test_decay_takes_a_part_of_the_weights_alone(params):
    decayed = transformations.decoupled_decay(optax.sgd(0.1), 0.3, lambda state: 0.1, of)
    updates, _ = decayed.update(constant(params), decayed.init(params), params)
    expected = jax.tree.map(
        lambda p, role: -0.05 - (jnp.zeros_like(p) if role.kind == "vector" else 0.03 * p), params, of(params)
    )
    close(updates, expected)


@pytest.mark.parametrize("largest", [0.1, 1e6])
def test_clipping_reaches_the_gradients_that_an_optimizer_asks_for(params, largest):
    asking = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda grads, state, params, *, grad_fn, **_: ((grads, grad_fn(params)), state)
    )
    clipped = transformations.clip_gradients(asking, largest)
    grads = constant(params)

    def twice(params):
        return jax.tree.map(lambda g: 2 * g, grads)

    (first, second), _ = clipped.update(grads, clipped.init(params), params, grad_fn=twice)
    norm = float(optax.tree.norm(grads))
    assert float(optax.tree.norm(first)) == pytest.approx(min(norm, largest), rel=1e-5)
    assert float(optax.tree.norm(second)) == pytest.approx(min(2 * norm, largest), rel=1e-5)


def test_max_norm_bounds_the_incoming_weights_of_each_unit(params):
    project = transformations.project_to_max_norm(1.5, of)
    step = constant(params)
    updates, _ = project.update(step, project.init(params), params)
    new = optax.apply_updates(params, updates)
    for layer, inputs in (("conv", (0, 1, 2)), ("dense", 0)):
        free = np.asarray(params[layer]["kernel"] + step[layer]["kernel"])
        norm = np.sqrt(np.square(free).sum(inputs))  # (units,)
        assert np.any(norm > 1.5) and (layer == "conv" or np.any(norm < 1.5))
        close(new[layer]["kernel"], free * np.minimum(1, 1.5 / norm))
    alone = {"kernel": params["layers"]["dense"]["kernel"][1]}
    updates, _ = project.update(constant(alone), project.init(alone), alone)
    close(new["layers"]["dense"]["kernel"][1], optax.apply_updates(alone, updates)["kernel"])
    for layer, name in (("norm", "scale"), ("embed", "embedding"), ("dense", "bias"), ("conv", "bias")):
        close(new[layer][name], params[layer][name] + step[layer][name])


def test_a_unit_without_weights_survives_max_norm():
    project = transformations.project_to_max_norm(1.0, by_shape)
    params = {"kernel": jnp.zeros((3, 2))}
    updates, _ = project.update(params, project.init(params), params)
    close(updates, params)


def test_the_average_is_the_weighted_mean_of_what_is_evaluated():
    def doubled(state, params):
        return jax.tree.map(lambda p: 2 * p, params)

    averaging = transformations.average(optax.sgd(1.0), 0.8, doubled)
    params = {"w": jnp.array([1.0, -2.0])}
    state = averaging.init(params)
    close(transformations.averaged(state, params), params)
    visited = []
    for g in (0.3, -0.1, 0.2, 0.5):
        updates, state = averaging.update({"w": jnp.full(2, g)}, state, params)
        params = optax.apply_updates(params, updates)
        visited.append(2 * np.asarray(params["w"]))
        weights = 0.8 ** np.arange(len(visited))[::-1]
        close(transformations.averaged(state, params)["w"], np.average(visited, axis=0, weights=weights))


def test_an_optimizer_sleeps_until_rate_times_gradient_is_not_zero():
    params = {"w": jnp.ones(2)}
    zero, one = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    for rate, grads, count in ((0.0, one, 0), (0.1, zero, 0), (0.1, one, 1)):
        adam = transformations.in_float32(optax.adam(rate))
        sleeping = transformations.from_first_gradient(adam, jnp.float32(rate))
        updates, (awake, inner) = sleeping.update(grads, sleeping.init(params), params)
        assert bool(awake) == count and int(inner[0].count) == count
        close(updates, {"w": jnp.full(2, -0.1 * count)}, rtol=1e-3)
    _, state = sleeping.update(one, sleeping.init(params), params)
    _, (awake, inner) = sleeping.update(zero, state, params)
    assert bool(awake) and int(inner[0].count) == 2, "once awake it stays so"


@pytest.mark.parametrize(
    "dtypes, expected",
    [
        (["bfloat16", "float16"], "float32"),
        (["bfloat16", "float64", "float32"], "float64"),
        (["int32", "float32"], "float32"),
        (["int8"], "float32"),
        ([], "float32"),
    ],
)
def test_hyperparameters_are_as_precise_as_any_parameter(dtypes, expected):
    params = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    assert transformations.widest(params) == jnp.dtype(expected)


def test_promotion_is_of_the_optimizer_alone():
    mixing = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * jnp.int32(2), updates))
    params = {"w": jnp.ones(2)}
    with jax.numpy_dtype_promotion("strict"):
        promoted = transformations.in_float32(mixing)
        updates, _ = promoted.update(params, promoted.init(params), params)
        assert updates["w"].dtype == jnp.float32
        with pytest.raises(Exception, match="no available implicit dtype promotion path"):
            jnp.float32(1) * jnp.int32(2)
