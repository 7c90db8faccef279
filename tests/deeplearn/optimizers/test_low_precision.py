"""Every optimizer of the table with bfloat16 and float16 parameters: float32 arithmetic, then rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplearn.optimizers import OPTIMIZERS
from tests.deeplearn.optimizers import cases, problem

LOW = {  # steps that rounding would swallow are larger here than in the other runs
    "adadelta": {"eps": 1e-2},
    "dog": {"reps_rel": 1e-2},
    "dowg": {"eps": 0.1},
    "lars": {"learning_rate": 0.1},
    "prodigy": {"d0": 0.1},
    "dadapt_adamw": {"d0": 1e-2},
    "radam": {"learning_rate": 0.2},
}
DTYPES = {  # both in one run
    "bias": "bfloat16",
    "embedding": "float16",
    "kernel": "bfloat16",
    "layers": "float16",
    "recurrent": "bfloat16",
}
NEAR = 0.1  # to the float64 run, of its movement
FAR = {  # steps of these depend on signs, or on an estimate that grows from rounded numbers
    **dict.fromkeys(["signum", "lion", "rprop", "sophia", "dadapt_adamw"], 0.4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounded_parameters_take_50_steps_near_those_of_float64(name):
    hyperparameters, schedule = cases.base(name) | LOW.get(name, {}), cases.scheduled(name)
    start = {w: jnp.asarray(x, DTYPES[w]) for w, x in problem.START.items()}
    run = problem.program(name, schedule)[1]
    (_, state), (path, updates, evaluated) = run(start, problem.floats(name, hyperparameters), np.arange(problem.STEPS))

    for tree in (path, updates, evaluated):
        assert {w: x.dtype for w, x in tree.items()} == DTYPES
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in [*floats, *jax.tree.leaves((path, evaluated))])

    for w, dtype in DTYPES.items():
        before = np.concatenate([np.asarray(start[w])[None], np.asarray(path[w])[:-1]]).astype(np.float32)
        after = (before + np.asarray(updates[w], np.float32)).astype(dtype)
        np.testing.assert_array_equal(np.asarray(path[w]), after)

    exact = problem.ours(name, hyperparameters, schedule=schedule)
    assert cases.distance(problem.steps(path), exact.params) < FAR.get(name, NEAR) * cases.movement(exact)


# Operation by operation: two compiled programs of the same arithmetic may differ in the last bits.
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_that_of_float32_to_the_bit(name):
    optimizer = problem.make(name)
    for dtype in ("bfloat16", "float16"):
        params, *grads = (few(problem.arrays(seed), dtype) for seed in range(3))
        state = optimizer.init(params)
        for g in grads:
            before = kinds(params, state)
            updates, after = optimizer.update(
                g, state, params, value=value_fn(params), value_fn=value_fn, grad_fn=grad_fn
            )
            jax.tree.map(np.testing.assert_array_equal, (updates, after), rounded(optimizer, g, state, params))
            params, state = optax.apply_updates(params, updates), after
            assert kinds(params, state) == before == kinds(optimizer.evaluation_params(state, params), state)


def kinds(*trees):
    return jax.tree.map(lambda x: (x.shape, x.dtype), trees)


def few(arrays, dtype):
    return {name: jnp.asarray(arrays[name], dtype) for name in ("bias", "layers")}


def value_fn(params):
    return sum(jnp.sum(jnp.square(w.astype(jnp.float32))) for w in params.values())


grad_fn = jax.grad(value_fn)


def rounded(optimizer, grads, state, params):
    """The float32 optimizer's updates, rounded to the parameters' dtype, and its state."""

    def narrow(tree):
        return jax.tree.map(lambda x, w: x.astype(w.dtype), tree, params)

    extra = {
        "value": value_fn(params),
        "value_fn": lambda p: value_fn(narrow(p)),
        "grad_fn": lambda p: wide(grad_fn(narrow(p))),
    }
    updates, state = optimizer.update(wide(grads), state, wide(params), **extra)
    return narrow(updates), state


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
