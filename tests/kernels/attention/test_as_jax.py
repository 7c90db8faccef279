"""The arguments of `jax.nn.dot_product_attention` mean here what they mean there: values, dtypes, shapes, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention, xla
from tests.kernels.attention.as_jax import (
    BATCH,
    BOUNDS,
    DEPTH,
    HEADS,
    IMPLEMENTATIONS,
    LENGTH,
    SHAPES,
    SPAN,
    close,
    coin,
    floats,
    theirs,
)
from tests.kernels.attention.cases import draw


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of queries and keys, of which the last are not whole."""
    monkeypatch.setattr(xla, "TILE", (16, 16))


LENGTHS = {"query_seq_lengths": [20, 2], "key_value_seq_lengths": [35, 17]}
ASKED = {
    "nothing": {},
    "scale": {"scale": 0.3},
    "scale of numpy": {"scale": np.float64(0.3)},
    "scale, an array": {"scale": jnp.float32(0.3)},
    "scale, an int": {"scale": 2},
    "scale below 0": {"scale": -0.3},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (3, 2)},
    "window of one number": {"local_window_size": 4},
    "window, a list": {"local_window_size": [30, 0]},
    "window of nothing else": {"local_window_size": (0, 0)},
    "causal window": {"is_causal": True, "local_window_size": (3, 2)},
    "lengths": {name: jnp.array(x, jnp.int32) for name, x in LENGTHS.items()},
    "lengths, lists": LENGTHS,
    "lengths of numpy": {name: np.array(x, np.int32) for name, x in LENGTHS.items()},
    "lengths of queries": {"query_seq_lengths": [20, 0]},
    "lengths of keys": {"key_value_seq_lengths": [1, 35]},
    "causal lengths": {"is_causal": True, **LENGTHS},
    "mask": {"mask": coin(0, BATCH, HEADS, LENGTH, SPAN)},
    "mask of examples": {"mask": coin(0, BATCH, 1, 1, SPAN)},
    "mask of heads": {"mask": coin(0, HEADS, 1, SPAN)},
    "mask of positions": {"mask": coin(0, LENGTH, SPAN)},
    "mask of keys": {"mask": coin(0, SPAN)},
    "mask, a list": {"mask": coin(0, SPAN).tolist()},
    "mask, a number": {"mask": True},
    "mask and lengths": {"mask": coin(0, 1, 1, LENGTH, SPAN), **LENGTHS},
    "bias": {"bias": floats(9, BATCH, HEADS, LENGTH, SPAN)},
    "bias of examples": {"bias": floats(9, BATCH, 1, 1, SPAN)},
    "bias of heads": {"bias": floats(9, HEADS, 1, 1)},
    "bias of queries": {"bias": floats(9, 1, HEADS, LENGTH, 1)},
    "bias of positions": {"bias": floats(9, LENGTH, SPAN)},
    "bias of keys": {"bias": floats(9, SPAN)},
    "bias, a list": {"bias": floats(9, SPAN).tolist()},
    "bias, a number": {"bias": 0.5},
    "bias and causal": {"bias": floats(9, 1, HEADS, LENGTH, SPAN), "is_causal": True},
    "bias, mask and lengths": {"bias": floats(9, LENGTH, SPAN), "mask": coin(0, HEADS, LENGTH, SPAN), **LENGTHS},
    "bias of float16": {"bias": floats(9, HEADS, 1, SPAN).astype(np.float16)},
    "bias of int32": {"bias": np.arange(SPAN, dtype=np.int32) % 5},
    "bias of int8": {"bias": np.arange(LENGTH * SPAN, dtype=np.int8).reshape(LENGTH, SPAN) % 7},
    "bias of bool": {"bias": coin(0, BATCH, HEADS, LENGTH, SPAN)},
    "residual": {"return_residual": True},
}


def in_float32(call, dtype):
    """`call` of these numbers in float32, its results in this dtype: on a CPU jax.nn has no gradient in float16."""

    def wide(*arrays, **asked):
        arrays = (x.astype(jnp.float32) for x in arrays)
        return jax.tree.map(lambda x: x.astype(dtype), call(*arrays, **asked))

    return wide


@pytest.mark.parametrize("case", ASKED)
def test_values_and_gradients(case):
    """By query, key, value, and a bias if there is one: float0 where it is of integers."""
    asked = dict(ASKED[case])
    learned = dict(zip(("query", "key", "value"), (floats(i, *shape) for i, shape in enumerate(SHAPES)), strict=True))
    learned |= {"bias": jnp.asarray(asked.pop("bias"))} if "bias" in asked else {}
    weigh = floats(5, *SHAPES[0])

    def results(call):
        found, pull = jax.vjp(lambda learned: call(**learned, **asked), learned)
        # The residual of jax.nn has no gradient.
        return found, pull((weigh, jnp.zeros_like(found[1])) if isinstance(found, tuple) else weigh)

    # The gradient of a bias that all keys share is 0 but for rounding.
    found = results(functools.partial(attention, implementation="xla"))
    close(found, results(theirs), BOUNDS["float32"], np.linalg.norm(weigh))


@pytest.mark.parametrize("case", ["nothing", "bias and causal", "lengths", "scale, an array"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_half_precision_and_grouped_queries(groups, dtype, case):
    shapes = SHAPES[0], *((BATCH, SPAN, groups, DEPTH),) * 2
    arrays = [jnp.asarray(draw(i, *shape), dtype) for i, shape in enumerate(shapes)]
    asked = {name: x.astype(dtype) if name == "bias" else x for name, x in ASKED[case].items()}
    weigh = jnp.asarray(draw(5, *shapes[0]), dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def results(call, arrays):
        found, pull = jax.vjp(lambda *arrays: call(*arrays, **asked), *arrays)
        return found, pull(weigh)

    close(results(attention, arrays), results(in_float32(theirs, dtype), arrays), BOUNDS[dtype])


VMAPPED = {
    "all": (0, 0, 0, 0, 0),
    "but bias and lengths": (0, 0, 0, None, None),
    "a bias alone": (None, None, None, 0, None),
}


@pytest.mark.parametrize("case", VMAPPED)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap(implementation, case):
    """Over examples, which have three axes then."""
    axes = VMAPPED[case]
    arrays = [floats(i, *shape) for i, shape in enumerate((*SHAPES, (BATCH, HEADS, LENGTH, SPAN)))]
    arrays.append(jnp.array([[20], [2]], jnp.int32))
    arrays = tuple(x[0] if axis is None else x for x, axis in zip(arrays, axes, strict=True))

    @functools.partial(jax.jit, static_argnums=0)
    def results(call, *arrays):
        one = lambda *x: call(*x[:4], query_seq_lengths=x[4])  # noqa: E731
        loss = lambda *x: jnp.sin(jax.vmap(one, in_axes=axes)(*x)).sum()  # noqa: E731
        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arrays)

    found = results(functools.partial(attention, implementation=implementation), *arrays)
    close(found, results(theirs, *arrays), 1e-5)


@pytest.mark.parametrize(
    "implementation, dtype", [(None, "bfloat16"), (None, "float16"), *((i, "float32") for i in IMPLEMENTATIONS)]
)
def test_a_scale_that_is_learned(implementation, dtype):
    """Traced by jit, by a gradient, and by vmap; the output keeps its dtype."""
    arrays = [jnp.asarray(draw(i, *shape), dtype) for i, shape in enumerate(SHAPES)]

    def results(call):
        one = jax.jit(lambda scale: call(*arrays, scale=scale))
        loss = lambda scale: jnp.sin(one(scale).astype(jnp.float32)).sum()  # noqa: E731
        scales = jnp.array([0.3, -1.5, 0.0], jnp.float32)
        return jax.vmap(one)(scales), jax.vmap(jax.grad(loss))(scales), jax.grad(loss)(0.3)

    found = results(functools.partial(attention, implementation=implementation))
    close(found, results(in_float32(theirs, dtype)), BOUNDS[dtype], 5.0)


def test_second_derivatives_by_a_scale():
    arrays = [floats(i, *shape) for i, shape in enumerate(SHAPES)]
    loss = lambda scale: jnp.sin(attention(*arrays, scale=scale, implementation="xla")).sum()  # noqa: E731
    found = jax.jit(jax.jacfwd(jax.grad(loss)))(0.3)
    wanted = jax.jit(jax.jacfwd(jax.grad(lambda scale: jnp.sin(theirs(*arrays, scale=scale)).sum())))(0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
