"""Arguments that are not four axes of known, positive sizes; and those that make no sense, as in jax.nn."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention
from tests.kernels.attention.as_jax import (
    BATCH,
    BOUNDS,
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

FEW_AXES = [
    ((5, 2, 4), (7, 2, 4)),
    ((5, 2, 4), (1, 7, 2, 4)),
    ((1, 5, 2, 4), (7, 2, 4)),
    ((2, 4), (2, 4)),
    ((5, 2, 4), (1, 4)),
    ((4,), (4,)),
    ((), ()),
]


@pytest.mark.parametrize("query, key", FEW_AXES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_few_axes(implementation, query, key):
    """Those that are missing in front are 1; the output has query's."""
    arrays = floats(0, *query), floats(1, *key), floats(2, *key)
    for asked in ({}, {"bias": floats(3, key[-3] if len(key) > 2 else 1), "key_value_seq_lengths": [1]}):
        found, wanted = (
            call(*arrays, return_residual=True, **asked)
            for call in (functools.partial(attention, implementation=implementation), theirs)
        )
        close(found, wanted, 1e-5)


def test_lists_and_numpy_arrays():
    arrays = [floats(i, *shape) for i, shape in enumerate(SHAPES)]
    wanted = theirs(*map(jnp.asarray, arrays))
    for convert in (lambda x: x, lambda x: x.tolist(), jnp.asarray):
        close(attention(*map(convert, arrays)), wanted, BOUNDS["float32"])


EMPTY = {
    "no examples": ((0, 5, 2, 4), (0, 7, 2, 4)),
    "no queries": ((2, 0, 2, 4), (2, 7, 2, 4)),
    "no keys": ((2, 5, 2, 4), (2, 0, 2, 4)),
    "no queries and no keys": ((2, 0, 2, 4), (2, 0, 2, 4)),
    "no heads of queries": ((2, 5, 0, 4), (2, 7, 2, 4)),
    "no features": ((2, 5, 2, 0), (2, 7, 2, 0)),
    "no queries of three axes": ((0, 2, 4), (7, 2, 4)),
    "many keys": ((2, 0, 2, 4), (2, 600, 2, 4)),
}


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty(implementation, case):
    """Values, the residual, and gradients; also with everything that is asked of positions."""
    query, key = (floats(i, *shape) for i, shape in enumerate(EMPTY[case]))
    *_, length, heads, depth = query.shape
    batch, span = (1, *query.shape)[-4], key.shape[-3]
    everything = {
        "is_causal": True,
        "local_window_size": (2, 1),
        "mask": jnp.ones((batch, heads, length, span), bool),
        "bias": jnp.zeros((heads, length, span)),
        "query_seq_lengths": jnp.full(batch, length, jnp.int32),
        "key_value_seq_lengths": jnp.full(batch, span, jnp.int32),
    }

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def results(call, names, query, key):
        call = functools.partial(call, **{name: everything[name] for name in names})
        out, pull = jax.vjp(call, query, key, key)
        return out, pull(jnp.ones_like(out)), jax.jvp(lambda query: call(query, key, key), (query,), (query,))

    for names in ((), tuple(everything)):
        found = results(functools.partial(attention, implementation=implementation), names, query, key)
        close(found, results(theirs, names, query, key), 1e-6)
    if depth:  # a scale of 1 / sqrt(0) there
        found, wanted = (f(query, key, key, return_residual=True)[1] for f in (attention, theirs))
        np.testing.assert_array_equal(found, wanted)


def test_no_heads_at_all():
    """Where jax.nn divides by zero."""
    x = jnp.ones((2, 5, 0, 4))
    assert attention(x, x, x).shape == x.shape
    with pytest.raises(ValueError, match="the 2 heads of query must be a multiple of the 0 of key"):
        attention(jnp.ones((2, 5, 2, 4)), x, x)


SYMBOLIC = {
    "nothing": ({}, {}),
    "causal window": ({"is_causal": True, "local_window_size": (3, 2)}, {}),
    "residual": ({"return_residual": True}, {}),
    "soft cap and dropout": ({"logits_soft_cap": 2.0, "dropout_rate": 0.3, "dropout_rng": jax.random.key(0)}, {}),
    "lengths": ({}, {"query_seq_lengths": ("b", np.array([20, 2])), "key_value_seq_lengths": ("b", np.array([35, 0]))}),
    "bias and mask": (
        {},
        {
            "bias": ("b, 4, 1, s", floats(9, BATCH, HEADS, 1, SPAN)),
            "mask": ("t, s", coin(0, LENGTH, SPAN)),
        },
    ),
    "segments": (
        {},
        {
            "segment_ids": ("b, t", np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) // 8),
            "key_value_segment_ids": ("b, s", np.arange(BATCH * SPAN).reshape(BATCH, SPAN) // 8),
        },
    ),
    "scale": ({}, {"scale": ("", np.float32(0.3))}),
}


@pytest.mark.parametrize("case", SYMBOLIC)
def test_symbolic_shapes(case):
    """One exported program of values, gradients and Hessian-vector products, for all batches and lengths."""
    asked, arrays = SYMBOLIC[case]
    arrays = {name: (shape, jnp.asarray(x)) for name, (shape, x) in arrays.items()}
    scope = jax.export.SymbolicScope()

    def of(shape, x):
        return jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), x.dtype)

    def program(learned, given):
        def loss(*learned):
            found = attention(*learned, **asked, **given)
            return sum(jnp.sin(x).sum() for x in jax.tree.leaves(found)), found

        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        (gradients, found), (products, _) = jax.jvp(gradient, learned, learned)
        return found, gradients, products

    learned = tuple(floats(i, *shape) for i, shape in enumerate(SHAPES))
    names = "b, t, 4, 8", *("b, s, 2, 8",) * 2
    exported = jax.export.export(jax.jit(program))(
        tuple(map(of, names, learned)), {name: of(*x) for name, x in arrays.items()}
    )
    given = {name: x for name, (_, x) in arrays.items()}
    close(exported.call(learned, given), program(learned, given), 1e-5)


def test_symbolic_heads_and_features():
    x = floats(0, *SHAPES[0])
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, t, n, d"), x.dtype)
    exported = jax.export.export(jax.jit(lambda x: attention(x, x, x, scale=0.5)))(shape)
    close(exported.call(x), attention(x, x, x, scale=0.5), 1e-6)
    with pytest.raises(ValueError, match="a symbolic D needs a scale"):
        jax.export.export(jax.jit(lambda x: attention(x, x, x)))(shape)
    with pytest.raises(NotImplementedError, match="takes sizes that are known when the program is compiled"):
        jax.export.export(jax.jit(lambda x: attention(x, x, x, scale=0.5, implementation="xla")))(shape)


REFUSED = [
    ((2, 5, 4, 8), (2, 7, 3, 8), {}, "heads of query must be a multiple of the 3 of key"),
    ((2, 5, 4, 8), (2, 7, 4, 9), {}, "the same B and D"),
    ((2, 5, 4, 8), (1, 7, 4, 8), {}, "the same B and D"),
    ((2, 5, 4, 8), (7, 4, 8), {}, "the same B and D"),
    ((1, 2, 5, 4, 8), (2, 7, 4, 8), {}, "query must be"),
    ((2, 5, 4, 8), (2, 7, 4, 8), {"value": (2, 7, 4, 7)}, "query must be"),
    ((2, 5, 4, 8), (2, 7, 4, 8), {"value": (2, 6, 4, 8)}, "query must be"),
]
OPTIONS_REFUSED = [
    ({"bias": jnp.ones((3, 4, 5, 7))}, "bias must be floating or integer or bool and broadcastable to"),
    ({"bias": jnp.ones((1, 2, 5, 7))}, "bias must be"),
    ({"bias": jnp.ones((1, 1, 1, 5, 7))}, "bias must be"),
    ({"bias": jnp.ones((5, 7), jnp.complex64)}, "bias must be .* not complex64"),
    ({"mask": jnp.ones((5, 7), jnp.int32)}, "mask must be bool and broadcastable to"),
    ({"mask": jnp.ones((7, 5), bool)}, "mask must be bool"),
    ({"query_seq_lengths": jnp.ones(2)}, "query_seq_lengths must be integers"),
    ({"query_seq_lengths": [3]}, "query_seq_lengths must be integers of shape"),
    ({"key_value_seq_lengths": [[3, 3]]}, "key_value_seq_lengths must be integers of shape"),
    ({"key_value_seq_lengths": 3}, "key_value_seq_lengths must be integers of shape"),
    ({"local_window_size": (1, 2, 3)}, "local_window_size must be an int or a pair of ints"),
    ({"local_window_size": (1.5, 2)}, "local_window_size must be an int or a pair of ints"),
    ({"local_window_size": (None, 2)}, "local_window_size must be an int or a pair of ints"),
    ({"local_window_size": (-1, 2)}, "local_window_size must not be negative"),
    ({"scale": jnp.ones(4)}, r"scale must be a real number, not float32 \(4,\)"),
    ({"scale": 1j}, "scale must be a real number"),
    ({"implementation": "fast"}, "implementation must be None or one of"),
]


@pytest.mark.parametrize("query, key, more, said", REFUSED)
def test_shapes_that_do_not_fit(query, key, more, said):
    """Which jax.nn refuses too."""
    query, key, value = (jnp.ones(shape) for shape in (query, key, more.get("value", key)))
    with pytest.raises(ValueError, match=said):
        attention(query, key, value)
    with pytest.raises((ValueError, TypeError)):
        theirs(query, key, value)


@pytest.mark.parametrize("asked, said", OPTIONS_REFUSED)
def test_options_that_make_no_sense(asked, said):
    query, key = jnp.ones((2, 5, 4, 8)), jnp.ones((2, 7, 4, 8))
    with pytest.raises(ValueError, match=said):
        attention(query, key, key, **asked)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "float8_e4m3fn"])
def test_other_dtypes(dtype):
    x = jnp.ones((1, 3, 1, 4)).astype(dtype)
    with pytest.raises(ValueError, match=f"one dtype of float16, bfloat16, float32, float64, not {dtype}"):
        attention(x, x, x)


@pytest.mark.parametrize(
    "name, value", [("local_window_size", 3), ("logits_soft_cap", 2.0), ("dropout_rate", 0.5), ("is_causal", True)]
)
def test_what_shapes_the_program_is_not_traced(name, value):
    x = jnp.ones((1, 3, 1, 4))
    call = jax.jit(lambda option: attention(x, x, x, dropout_rng=jax.random.key(0), **{name: option}))
    with pytest.raises(ValueError, match=f"{name} must be known when the program is compiled, and is traced"):
        call(value)
