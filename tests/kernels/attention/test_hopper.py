"""The Hopper kernels, interpreted on a CPU with races detected, against the formula in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from jax.sharding import PartitionSpec as P

from kernels import target
from kernels.attention import attention
from kernels.attention.hopper import machine, plan
from tests.kernels.attention import modes
from tests.kernels.attention.cases import (
    BANDS,
    BOUNDS,
    CASES,
    HEADS,
    LENGTH,
    SPAN,
    check,
    check_numbers,
    check_poison,
    coin,
    distance,
    draw,
    inputs,
)
from tests.kernels.hopper import InterpretGPUParams, interpreting

# Two bfloat16 parts hold 16 bits of a float32.
BOUNDS = BOUNDS | {"float32": 3e-5}


@pytest.fixture(autouse=True)
def interpreted(capsys):
    with interpreting(capsys):
        yield


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of queries and of keys where the kernels' own would hold all: the interpreter takes any size."""
    monkeypatch.setattr(machine, "WARPGROUP", 32)
    monkeypatch.setattr(plan, "BLOCKS", (32,))


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(small_tiles, case):
    check("hopper", case, "bfloat16")


@pytest.mark.parametrize(
    "dtype, case",
    [
        ("float32", "causal window"),
        ("float32", "soft cap"),
        ("float32", "everything"),
        ("float16", "no keys"),
        ("float16", "bias of keys"),
    ],
)
def test_other_dtypes(small_tiles, dtype, case):
    check("hopper", case, dtype, BOUNDS[dtype])


SHAPES = [
    ((1, 1, 1, 1, 1, 32), {}),
    ((1, 130, 3, 2, 2, 16), {}),
    ((1, 3, 130, 3, 1, 8), {"is_causal": True}),
    ((1, 200, 200, 2, 1, 64), {"is_causal": True}),
    ((1, 130, 260, 1, 1, 128), {"local_window_size": (70, 9)}),
    ((1, 65, 129, 1, 1, 96), {"bias": draw(9, 65, 129), "mask": coin(0, 65, 129)}),
    ((1, 65, 64, 1, 1, 256), {"is_causal": True}),
]


@pytest.mark.parametrize(
    "shape, asked", SHAPES, ids=lambda x: str(x) if isinstance(x, tuple) else "-".join(x) or "plain"
)
def test_shapes(shape, asked):
    """Tiles of the sizes that a GPU gets."""
    check("hopper", asked, "bfloat16", arrays=inputs(shape))


@pytest.mark.parametrize("depth", [64, 200, 256])
def test_shapes_in_float32(depth):
    check("hopper", "causal", "float32", BOUNDS["float32"], inputs((1, 70, 130, 1, 1, depth)))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(**BANDS)
@example(length=33, span=31, left=80, right=0, causal=True)
def test_every_band(length, span, left, right, causal):
    """Tiles are skipped, or not masked, by arithmetic on their corners: whatever the lengths and the window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "WARPGROUP", 32)
        patch.setattr(plan, "BLOCKS", (32,))
        arrays = inputs((1, length, span, 1, 1, 4))
        check("hopper", {"is_causal": causal, "local_window_size": (left, right)}, "bfloat16", arrays=arrays)


def test_nothing_is_read_beyond_the_lengths(small_tiles):
    check_poison("hopper", "bfloat16", 1e30)


def test_nothing_is_read_that_was_not_written(small_tiles):
    """Memory is NaN until then; tiles are whole here, for what TMA reads beyond an end is 0 and not NaN."""
    with target.interpreted(InterpretGPUParams(detect_races=True, uninitialized_memory="nan")):
        for case in ("plain", "causal", "soft cap"):
            check("hopper", case, "bfloat16", arrays=inputs((1, 64, 128, 2, 1, 32)))


def test_rows_without_keys(small_tiles):
    """Output 0, lse -inf, gradient 0; also where the bias is -inf."""
    query, key, value, *_ = (jnp.asarray(x).astype(jnp.bfloat16) for x in inputs())
    bias = jnp.zeros((37, 51)).at[5].set(-jnp.inf)
    for asked, rows in (({"key_value_seq_lengths": jnp.array([0, 4])}, np.s_[0]), ({"bias": bias}, np.s_[:, 5])):
        call = functools.partial(attention, implementation="hopper", **asked)
        out, lse = call(query, key, value, return_residual=True)
        assert (
            not out[rows].any()
            and (lse[rows] == -jnp.inf).all()
            and jnp.isfinite(lse).sum() == lse.size - lse[rows].size
        )
        found = jax.grad(lambda *qkv, call=call: call(*qkv).sum(), argnums=(0, 1, 2))(query, key, value)
        assert not found[0][rows].any() and all(jnp.isfinite(x).all() for x in found)


def test_vmap(small_tiles):
    query, key, value, *_ = (jnp.asarray(x).astype(jnp.bfloat16) for x in inputs())
    call = functools.partial(attention, is_causal=True, implementation="hopper")
    grad = jax.grad(lambda *qkv: call(*qkv).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    for function in (call, grad):
        wanted, found = function(query, key, value), jax.vmap(function)(query, key, value)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_shard_map(small_tiles):
    """Examples divided over devices, a bias that all share: two are traced, as one alone can be interpreted."""
    arrays = [jnp.asarray(x).astype(jnp.bfloat16) for x in (*inputs()[:3], draw(9, HEADS, LENGTH, SPAN))]
    call = lambda query, key, value, bias: attention(  # noqa: E731
        query, key, value, bias=bias, is_causal=True, implementation="hopper"
    )
    loss = lambda call: lambda *arrays: call(*arrays).astype(jnp.float32).sum()  # noqa: E731

    def divided(devices):
        mesh, (shared, split) = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",)), (P(), P("data"))
        return loss(jax.shard_map(call, mesh=mesh, in_specs=(split, split, split, shared), out_specs=split))

    gradient = functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    jax.eval_shape(gradient(divided(2)), *arrays)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(gradient(divided(1)))(*arrays), jax.jit(gradient(loss(call)))(*arrays)
    )


def test_second_derivatives(small_tiles):
    """Of a gradient's square, by all that is learned: as the formula's."""
    *learned, weigh, _ = (jnp.asarray(x, jnp.float32) for x in inputs((1, 5, 7, 2, 1, 8)))
    learned.append(jnp.asarray(draw(9, 5, 7), jnp.float32))

    def second(implementation):
        def loss(query, key, value, bias):
            out = attention(query, key, value, bias=bias, is_causal=True, implementation=implementation)
            return (out * weigh).sum()

        square = lambda *learned: sum((x**2).sum() for x in jax.grad(loss, argnums=(0, 1, 2, 3))(*learned))  # noqa: E731
        return jax.grad(square, argnums=(0, 1, 2, 3))(*learned)

    for ours, theirs in zip(second("hopper"), second("reference"), strict=True):
        assert distance(np.asarray(ours, np.float64), np.asarray(theirs, np.float64)) < BOUNDS["float32"]


def test_derivatives(small_tiles):
    """In forward mode, and of the gradients: made in plain JAX of what the kernels return."""
    asked = {"is_causal": True, "logits_soft_cap": 2.0, "bias": draw(9, 2, 40, 37)}
    modes.check("hopper", asked, modes.PRODUCTS, "float32", BOUNDS["float32"], inputs((1, 40, 37, 2, 1, 8)))


def test_other_gpus(monkeypatch):
    monkeypatch.setattr(target, "interpreter", lambda: None)
    monkeypatch.setattr(target, "device", lambda: ("cuda", "NVIDIA A100-SXM4-80GB"))
    x = jax.ShapeDtypeStruct((1, 16, 1, 64), "bfloat16")
    with pytest.raises(NotImplementedError, match="runs on H100, .* and this is NVIDIA A100"):
        jax.eval_shape(functools.partial(attention, implementation="hopper"), x, x, x)


@pytest.mark.parametrize(
    "dtype, depth, said", [("float64", 64, "has no float64"), ("bfloat16", 320, "has heads of 256 numbers at most")]
)
def test_refusals(dtype, depth, said):
    x = jax.ShapeDtypeStruct((1, 16, 1, depth), dtype)
    with pytest.raises(NotImplementedError, match=said):
        jax.eval_shape(functools.partial(attention, implementation="hopper"), x, x, x)


def test_dropout_by_the_numbers_of_heads(small_tiles):
    check_numbers("hopper", BOUNDS["float32"])
