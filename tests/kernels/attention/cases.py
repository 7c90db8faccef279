"""What every implementation of attention is tried with, and what it must find."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kernels.attention import attention, backends, masks, reference
from kernels.attention.request import ask

# Of sums of some hundred products of numbers about 1, relative to the result's norm.
BOUNDS = {"float64": 1e-12, "float32": 3e-6, "bfloat16": 3e-2, "float16": 4e-3}
BATCH, LENGTH, SPAN, HEADS, GROUPS, DEPTH = 2, 37, 51, 4, 2, 8


def draw(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape)


def coin(seed, *shape):
    return jax.random.bernoulli(jax.random.key(seed), 0.6, shape)


def segments(seed, length):
    return jnp.sort(jax.random.randint(jax.random.key(seed), (BATCH, length), 0, 4), axis=1)


# What is asked for, and bias.
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (9, 3)},
    "window, one side": {"local_window_size": (0, 20)},
    "causal window": {"is_causal": True, "local_window_size": 11},
    "scale": {"scale": 0.3},
    "lengths": {"query_seq_lengths": jnp.array([30, 2]), "key_value_seq_lengths": jnp.array([51, 17])},
    "no keys": {"key_value_seq_lengths": jnp.array([5, 0])},
    "segments": {"segment_ids": segments(0, LENGTH), "key_value_segment_ids": segments(1, SPAN)},
    "mask": {"mask": coin(0, BATCH, 1, LENGTH, SPAN)},
    "mask of keys": {"mask": coin(1, SPAN)},
    "mask of heads": {"mask": coin(2, 1, HEADS, LENGTH, 1)},
    "soft cap": {"logits_soft_cap": 1.5},
    "bias": {"bias": draw(9, BATCH, HEADS, LENGTH, SPAN)},
    "bias of heads": {"bias": draw(9, HEADS, 1, 1)},
    "bias of keys": {"bias": draw(9, BATCH, 1, 1, SPAN)},
    "bias of positions": {"bias": draw(9, LENGTH, SPAN)},
    "bias of queries": {"bias": draw(9, 1, HEADS, LENGTH, 1)},
    "dropout": {"dropout_rate": 0.3, "dropout_rng": jax.random.key(5)},
    "everything": {
        "is_causal": True,
        "local_window_size": (30, 2),
        "query_seq_lengths": jnp.array([30, 37]),
        "key_value_seq_lengths": jnp.array([51, 17]),
        "segment_ids": segments(0, LENGTH),
        "key_value_segment_ids": segments(1, SPAN),
        "mask": coin(0, BATCH, HEADS, LENGTH, SPAN),
        "logits_soft_cap": 2.0,
        "bias": draw(9, 1, HEADS, LENGTH, SPAN),
        "dropout_rate": 0.2,
        "dropout_rng": jax.random.key(5),
    },
}


def inputs(shape=(BATCH, LENGTH, SPAN, HEADS, GROUPS, DEPTH)):
    """Query, key, value, and what the output and the log-sum-exp are weighed with."""
    batch, length, span, heads, groups, depth = shape
    return (
        draw(1, batch, length, heads, depth),
        draw(2, batch, span, groups, depth),
        draw(3, batch, span, groups, depth),
        draw(4, batch, length, heads, depth),
        draw(5, batch, length, heads),
    )


def program(implementation, asked):
    """From query, key, value (and bias), and the weights of output and log-sum-exp, to both, and the gradients of the
    weighted sum; a log-sum-exp of -inf counts as 0.
    """

    def run(learned, weigh, weigh_lse):
        def loss(*learned):
            out, lse = attention(*learned, return_residual=True, implementation=implementation, **asked)
            lse = jnp.where(jnp.isfinite(lse), lse, 0.0).astype(jnp.float64)
            return (out.astype(jnp.float64) * weigh).sum() + (lse * weigh_lse).sum(), (out, lse)

        argnums = tuple(range(len(learned)))
        (_, values), gradients = jax.value_and_grad(loss, argnums=argnums, has_aux=True)(*learned)
        return *values, *gradients

    return jax.jit(run)


def unbiased(asked):
    """The program by the formula; it gets the bias with the arrays that are learned."""
    return program("reference", {name: x for name, x in asked.items() if name != "bias"})


@functools.cache
def formula(case):
    """The same of a case, compiled once for all that is compared with it."""
    return unbiased(CASES[case])


def results(implementation, dtype, arrays, **asked):
    """Output, log-sum-exp and gradients, float64, of `inputs` in this dtype."""
    *learned, weigh, weigh_lse = arrays
    learned += [asked.pop("bias")] if "bias" in asked else []
    learned = [jnp.asarray(x).astype(dtype) for x in learned]
    return [np.asarray(x, np.float64) for x in program(implementation, asked)(learned, weigh, weigh_lse)]


def check(implementation, case, dtype, bound=None, arrays=None):
    """Values and all gradients, against the formula in float64 of the numbers that the dtype has.

    case: a name in CASES, or what is asked itself.
    """
    *learned, weigh, weigh_lse = inputs() if arrays is None else arrays
    asked, exact_program = (CASES[case], formula(case)) if isinstance(case, str) else (case, unbiased(case))
    learned += [asked["bias"]] if "bias" in asked else []
    exact = [jnp.asarray(x).astype(dtype).astype(jnp.float64) for x in learned]
    wanted = [np.asarray(x, np.float64) for x in exact_program(exact, weigh, weigh_lse)]
    found = results(implementation, dtype, (*learned[:3], weigh, weigh_lse), **asked)
    assert len(found) == 2 + len(learned)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.isfinite(ours).all() and distance(ours, theirs) < (bound or BOUNDS[dtype])


# Of a test that draws them: whatever the lengths and the window, no tile is skipped that counts.
BANDS = {
    "length": st.integers(1, 70),
    "span": st.integers(1, 70),
    "left": st.integers(0, 80),
    "right": st.integers(0, 80),
    "causal": st.booleans(),
}


def check_poison(implementation, dtype, poison):
    """What lies beyond the lengths changes nothing: neither values nor gradients."""
    query, key, value, *weights = map(jnp.asarray, inputs())
    lengths = {"query_seq_lengths": jnp.array([30, 2]), "key_value_seq_lengths": jnp.array([51, 17])}
    wanted = results(implementation, dtype, [query, key, value, *weights], **lengths)
    key, value = (x.at[1, 17:].set(poison) for x in (key, value))
    query = query.at[1, 2:].set(poison)
    found = results(implementation, dtype, [query, key, value, *weights], **lengths)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def check_numbers(implementation, bound):
    """Dropout goes by the heads' numbers where they are given: what a device has of many is not its first."""
    query, key, value, *_ = (jnp.asarray(x, jnp.float32) for x in inputs())
    drop = 0.3, jax.random.key(5), jnp.array([[3, 1, 7, 6], [2, 9, 4, 5]], jnp.int32)
    request, arrays = ask((query, key, value, None), masks.Mask(), (False, None), (None, None), drop, True)
    found, wanted = backends.module(implementation).forward(request, arrays), reference.attention(request, arrays)
    assert distance(*map(np.asarray, (found[0], wanted[0]))) < bound


def distance(found, wanted):
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12)
