import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deeplearn.training.fingerprint import fingerprints


def fingerprint(x):
    return fingerprints({"x": x})["x"]


def bits(dtype):
    return f"uint{8 * np.dtype(dtype).itemsize}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "float8_e4m3fn"])
@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 23), data=st.data())
def test_every_flipped_bit_shows(dtype, position, data):
    x = np.asarray(jnp.arange(24).reshape(4, 6).astype(dtype))
    words = x.copy().view(bits(dtype))
    words.flat[position] ^= words.dtype.type(1 << data.draw(st.integers(0, 8 * x.itemsize - 1)))
    assert fingerprint(jnp.asarray(x)).sums != fingerprint(jnp.asarray(words.view(x.dtype))).sums


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 63), min_size=1))
@example(positions={0})
@example(positions=set(range(64)))
@example(positions={0, 1})
def test_flipped_signs_show_however_many(positions):
    x = jax.random.normal(jax.random.key(1), (64,))
    signs = np.ones(64, np.float32)
    signs[list(positions)] = -1
    assert fingerprint(x).sums != fingerprint(x * signs).sums


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(12)))
@example(order=list(range(12)))
@example(order=[1, 0, *range(2, 12)])
@example(order=list(range(11, -1, -1)))
def test_order_counts(order):
    x = np.arange(12, dtype=np.float32)
    same = order == sorted(order)
    assert (fingerprint(jnp.asarray(x)).sums == fingerprint(jnp.asarray(x[np.array(order)])).sums) == same


def test_the_name_counts():
    x = jnp.arange(3.0)
    prints = fingerprints({"a": x, "b": x})
    assert prints["a"].sums != prints["b"].sums


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [(), ("a",), (None, "b"), ("a", "b"), (("a", "b"),)])
def test_does_not_depend_on_the_sharding(spec, axis_type):
    x = jax.random.normal(jax.random.key(0), (16, 24))
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(axis_type,) * 2)
    assert fingerprint(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))) == fingerprint(x)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8", "int4", "complex64"])
def test_every_shape_and_dtype(dtype, shape):
    ones = fingerprint(jnp.ones(shape, dtype))
    assert ones.finite
    assert (ones.sums != fingerprint(jnp.zeros(shape, dtype)).sums) == bool(np.prod(shape))


@pytest.mark.parametrize("dtype", ["float64", "int64", "complex128"])
def test_both_halves_of_64_bits_count(dtype):
    with jax.enable_x64(True):
        x = np.arange(1, 7).astype(dtype)
        for word in range(x.nbytes // 4):
            changed = x.copy()
            changed.view(np.uint32)[word] ^= 1
            assert fingerprint(jnp.asarray(x)).sums != fingerprint(jnp.asarray(changed)).sums


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_finite(dtype, bad):
    x = jnp.ones((3, 5), dtype)
    assert fingerprint(x).finite and not fingerprint(x.at[2, 4].set(bad)).finite


def test_agrees_with_a_scalar_reference():
    import zlib

    def mix(x):
        x = ((x ^ x >> 16) * 0x85EBCA6B) % 2**32
        x = ((x ^ x >> 13) * 0xC2B2AE35) % 2**32
        return x ^ x >> 16

    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 5)))
    seed = zlib.crc32(b"x")
    words = [int(w) for w in x.view(np.uint32).ravel()]
    expected = tuple(
        sum(mix(w ^ mix((i + s) % 2**32)) for i, w in enumerate(words)) % 2**32 for s in (seed, 2**32 - 1 - seed)
    )
    assert fingerprint(jnp.asarray(x)).sums == expected
