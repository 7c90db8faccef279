"""A sequence divided over devices against the whole of it on one."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.attention import attention, ring, ring_attention, xla
from kernels.attention.masks import Band, Mask
from kernels.attention.request import Arrays, Request
from tests.kernels.attention.modes import PRODUCTS, SECOND, THIRD, compare, results

BATCH, LENGTH, HEADS, GROUPS, DEPTH = 2, 48, 4, 2, 8
SEGMENTS = jnp.sort(jax.random.randint(jax.random.key(9), (BATCH, LENGTH), 0, 4), axis=1)
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal window": {"is_causal": True, "local_window_size": 20},
    "causal window of one block": {"is_causal": True, "local_window_size": 10},
    "window of one block": {"local_window_size": (2, 3)},
    "window ahead": {"local_window_size": (0, 25)},
    "lengths": {"query_seq_lengths": jnp.array([40, 20]), "key_value_seq_lengths": jnp.array([30, 0])},
    "segments": {"segment_ids": SEGMENTS, "is_causal": True},
    "soft cap": {"logits_soft_cap": 2.0, "scale": 0.5},
}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def draw(heads, seed):
    return jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, heads, DEPTH), jnp.float64)


def divided(devices, **asked):
    """`ring_attention` of whole arrays, its options that are arrays among them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("sequence",))
    arrays = {name: x for name, x in asked.items() if isinstance(x, jax.Array)}
    rest = {name: x for name, x in asked.items() if name not in arrays}
    along = P(None, "sequence")
    specs = {name: along if x.shape == (BATCH, LENGTH) else P() for name, x in arrays.items()}
    call = lambda q, k, v, arrays: ring_attention(q, k, v, axis_name="sequence", **rest, **arrays)  # noqa: E731
    call = jax.shard_map(call, mesh=mesh, in_specs=(along, along, along, specs), out_specs=along)
    return lambda *qkv: call(*qkv, arrays)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, devices):
    """Of output and log-sum-exp alike."""
    qkv = draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2)
    weigh, weigh_lse = draw(HEADS, 3), draw(HEADS, 4)[..., 0]
    asked = CASES[case] | {"return_residual": True}

    def found(call):
        def loss(*qkv):
            out, lse = call(*qkv)
            return (out * weigh).sum() + (jnp.where(jnp.isfinite(lse), lse, 0.0) * weigh_lse).sum(), (out, lse)

        (_, values), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
        return *values, *gradients

    whole = functools.partial(attention, implementation="reference", **asked)
    for ours, theirs in zip(found(divided(devices, **asked)), found(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "asked, choices, journeys",
    [
        ({}, 0, 1),  # in a loop of three, after which the last stays
        ({"is_causal": True}, 2, 2),  # after its own, and in a loop of two
        ({"local_window_size": (2, 3)}, 2, 3),  # after its own, after those behind, and on to those before
    ],
    ids=str,
)
def test_only_blocks_that_count_are_computed(monkeypatch, asked, choices, journeys):
    """A step where the band leaves one of two blocks is a choice, several where it leaves none are one journey."""
    seen, choose = [], jax.lax.cond

    def cond(predicate, yes, no, *operands):
        seen.append(yes.__qualname__.split(".")[0])
        return choose(predicate, yes, no, *operands)

    monkeypatch.setattr(jax.lax, "cond", cond)
    qkv = draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2)
    call = jax.jit(divided(4, implementation="xla", **asked))
    program = call.lower(*qkv).compile().as_text()
    assert seen.count("_visit") == choices
    assert len(re.findall(r"= .* collective-permute(?:-start)?\(", program)) == 2 * journeys  # keys and values


def test_the_band_of_a_block():
    """Every window at every distance: no block where nothing is left, no end of the band that leaves out nothing."""
    size = 4
    i, j = np.mgrid[:size, :size]
    x = jax.ShapeDtypeStruct((1, size, 1, 1), jnp.float32)
    arrays = Arrays(x, x, x, None, Mask(), None)
    for low, high, distance in itertools.product((None, *range(-13, 1)), (None, *range(14)), range(-3, 4)):
        apart = j - i - distance * size  # of the whole sequences
        after, before = low is None or apart >= low, high is None or apart <= high
        request = Request(1.0, None, Band(low, high), 0.0)
        block = ring._block(ring.Ring("a", 4, request, "xla"), arrays, distance)
        assert (block is None) == (not np.any(np.broadcast_to(after & before, i.shape)))
        if block is not None:
            assert (block.band.low is None) == np.all(after) and (block.band.high is None) == np.all(before)
            assert block.band.low is None or np.array_equal(j - i >= block.band.low, after)
            assert block.band.high is None or np.array_equal(j - i <= block.band.high, before)


@pytest.mark.parametrize("case", ["causal window", "lengths", "segments"])
def test_derivatives(case):
    """In both modes and their combinations, as those of one device."""
    x = draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2)
    v = draw(HEADS, 3), draw(GROUPS, 4), draw(GROUPS, 5)
    asked = CASES[case] | {"return_residual": True}
    modes = SECOND if case == "segments" else PRODUCTS
    wanted = results(functools.partial(attention, implementation="reference", **asked), x, v, modes)
    compare(results(divided(4, **asked), x, v, modes), wanted, 1e-12)


def test_third_derivatives_raise():
    x = draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2)
    call = divided(2, return_residual=True)
    with pytest.raises(NotImplementedError, match="ring attention has first and second derivatives"):
        results(call, x, x, {"third": THIRD["forward, three times"]})


def test_a_learned_scale():
    """As on one device, its gradient the sum over all."""
    x = draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2)

    def gradient(call):
        return jax.jit(jax.grad(lambda scale: jnp.sin(call(scale)(*x)).sum()))(0.3)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("sequence",))
    along = P(None, "sequence")
    ring = lambda q, k, v, scale: ring_attention(q, k, v, axis_name="sequence", scale=scale)  # noqa: E731
    ring = jax.shard_map(ring, mesh=mesh, in_specs=(along, along, along, P()), out_specs=along)
    found = gradient(lambda scale: lambda *qkv: ring(*qkv, scale))
    np.testing.assert_allclose(found, gradient(lambda scale: functools.partial(attention, scale=scale)), rtol=1e-11)


def test_half_precision():
    qkv = [x.astype(jnp.bfloat16) for x in (draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2))]
    found = divided(4, is_causal=True)(*qkv)
    assert found.dtype == jnp.bfloat16
    wanted = attention(*(x.astype(jnp.float64) for x in qkv), is_causal=True, implementation="reference")
    assert np.linalg.norm(found.astype(jnp.float64) - wanted) < 0.01 * np.linalg.norm(wanted)


def test_memory_is_that_of_a_part(monkeypatch):
    """Of eight devices each has less than half of the temporaries of one that does it alone."""
    monkeypatch.setattr(xla, "TILE", (64, 64))

    def temporaries(devices):
        shape = jax.ShapeDtypeStruct((1, 4096, 2, 16), jnp.float32)
        call = divided(devices, is_causal=True, implementation="xla")
        loss = jax.grad(lambda *qkv: call(*qkv).sum(), argnums=(0, 1, 2))
        return jax.jit(loss).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.5 * temporaries(1)


def test_nothing_to_attend_to():
    with pytest.raises(ValueError, match=r"ring attention takes no empty arrays, .* \(0, 24, 4, 8\)"):
        divided(2)(*(draw(n, 0)[:0] for n in (HEADS, GROUPS, GROUPS)))


def test_more_keys_than_queries():
    """Without a band; with one, which keys a block's queries see would depend on the device."""
    query, key, value = draw(HEADS, 0)[:, :24], draw(GROUPS, 1), draw(GROUPS, 2)
    asked = {"query_seq_lengths": jnp.array([20, 24]), "key_value_seq_lengths": jnp.array([30, 48])}
    wanted = attention(query, key, value, implementation="reference", **asked)
    np.testing.assert_allclose(jax.jit(divided(2, **asked))(query, key, value), wanted, rtol=1e-11, atol=1e-12)
    for band in ({"is_causal": True}, {"local_window_size": 3}):
        with pytest.raises(ValueError, match="need as many keys as queries on a device, not 24 and 12"):
            divided(2, **band)(query, key, value)


@pytest.mark.parametrize(
    "name, error, said",
    [
        ("reference", ValueError, "None or one of xla"),
        ("cudnn", NotImplementedError, "runs on cuda"),
        ("tpu", NotImplementedError, "runs on tpu"),
    ],
)
def test_implementations_that_will_not_do(name, error, said):
    with pytest.raises(error, match=said):
        divided(2, implementation=name)(draw(HEADS, 0), draw(GROUPS, 1), draw(GROUPS, 2))
