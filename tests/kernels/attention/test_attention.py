"""Every implementation against the formula in float64, values and all gradients; the formula against others'."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.attention import attention, dropout, masks, xla
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
    results,
)

BACKENDS = ("xla",)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of queries and keys, of which the last are not whole."""
    monkeypatch.setattr(xla, "TILE", (16, 32))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", BACKENDS)
def test_values_and_gradients(implementation, case, dtype):
    check(implementation, case, dtype)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_float16(implementation):
    check(implementation, "everything", "float16")


SHAPES = [
    (1, 1, 1, 1, 1, 32),
    (1, 16, 32, 2, 1, 64),
    (1, 130, 3, 3, 3, 16),
    (2, 3, 130, 6, 2, 8),
    (1, 65, 64, 1, 1, 256),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", BACKENDS)
def test_shapes(implementation, shape):
    for asked in ({}, {"is_causal": True}):
        wanted, found = (results(i, "float64", inputs(shape), **asked) for i in ("reference", implementation))
        assert max(map(distance, found, wanted)) < BOUNDS["float64"]


@settings(max_examples=10, deadline=None)
@given(**BANDS)
@example(length=16, span=15, left=80, right=0, causal=True)
@example(length=1, span=33, left=0, right=0, causal=False)
@pytest.mark.parametrize("implementation", BACKENDS)
def test_every_band(implementation, length, span, left, right, causal):
    """Tiles are skipped by arithmetic on their corners: whatever the lengths and the window, none that counts."""
    asked = {"is_causal": causal, "local_window_size": (left, right)}
    arrays = inputs((1, length, span, 1, 1, 4))
    wanted, found = (results(i, "float64", arrays, **asked) for i in ("reference", implementation))
    assert max(map(distance, found, wanted)) < BOUNDS["float64"]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), length=st.integers(1, 40), span=st.integers(1, 40))
def test_kinds_of_tiles(data, length, span):
    """Against counting what is allowed; several rules together may leave a tile empty that none does alone."""
    end = st.none() | st.integers(-50, 50)
    low, high = data.draw(end), data.draw(end)
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    number = lambda size: sorted(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))  # noqa: E731
    mask = masks.Mask(
        key_lengths=data.draw(st.none() | st.integers(0, span).map(lambda n: jnp.array([n], jnp.int32))),
        query_segments=(first := data.draw(st.none() | st.just(number(length)))) and jnp.array([first], jnp.int32),
        key_segments=first and jnp.array([number(span)], jnp.int32),
    )
    band, size = masks.Band(low, high), (16, 8)
    allowed = masks.allowed(band, mask, (0, 0), (length, span), (length, span))
    allowed = np.broadcast_to(True if allowed is None else allowed, (1, 1, length, span))[0, 0]
    kinds = np.asarray(masks.tiles(band, mask, size, (length, span)))[0, 0]
    for i, row in enumerate(kinds):
        for j, kind in enumerate(row):
            tile = allowed[i * 16 : (i + 1) * 16, j * 8 : (j + 1) * 8]
            assert kind != masks.EMPTY or not tile.any()
            assert kind != masks.FULL or (tile.all() and tile.shape == size)
            if mask == masks.Mask():
                assert (kind == masks.EMPTY) == (not tile.any())
                assert (kind == masks.FULL) == (tile.all() and tile.shape == size)


@pytest.mark.parametrize("length, span", [*itertools.product((5, 6), (7, 8))])
def test_kinds_of_tiles_of_every_length(length, span):
    """Tiles and lengths that end one query or one key short of a tile among them."""
    ends = np.stack(np.meshgrid(range(length + 1), range(span + 1)), axis=-1).reshape(-1, 2).astype(np.int32)
    some_rows, some_columns = (np.arange(n) < end[:, None] for n, end in zip((length, span), ends.T, strict=True))
    allowed, size = some_rows[:, :, None] & some_columns[:, None, :], (3, 4)
    kinds = np.asarray(masks.tiles(masks.Band(), masks.Mask(*map(jnp.asarray, ends.T)), size, (length, span)))[:, 0]
    for i, j in np.ndindex(*kinds.shape[1:]):
        tile = allowed[:, i * 3 : (i + 1) * 3, j * 4 : (j + 1) * 4]
        every, some = tile.all(axis=(1, 2)) & (tile.shape[1:] == size), tile.any(axis=(1, 2))
        wanted = np.where(every, masks.FULL, np.where(some, masks.PARTIAL, masks.EMPTY))
        np.testing.assert_array_equal(kinds[:, i, j], wanted)


def test_kinds_of_tiles_of_every_band():
    """Tiles that an end of the band cuts, and those at which it ends, among them."""
    (length, span), size = (6, 9), (3, 4)
    apart = np.arange(span) - np.arange(length)[:, None]
    for low, high in itertools.product((None, *range(-7, 11)), repeat=2):
        if low is not None and high is not None and low > high:
            continue
        allowed = np.ones((length, span), bool) & (low is None or apart >= low) & (high is None or apart <= high)
        some, every = masks.band_tiles(masks.Band(low, high), size, (length, span))
        for i, j in np.ndindex(*some.shape):
            tile = allowed[i * 3 : (i + 1) * 3, j * 4 : (j + 1) * 4]
            assert some[i, j] == tile.any() and every[i, j] == (tile.all() and tile.shape == size)


@pytest.mark.parametrize(
    "queries, keys, kind",
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], masks.PARTIAL),
        ([0, 0, 1, 1], [1, 1, 1, 1], masks.PARTIAL),
        ([1, 1, 1, 1], [1, 1, 1, 1], masks.FULL),
        ([0, 0, 0, 0], [1, 1, 1, 1], masks.EMPTY),
    ],
)
def test_kinds_of_tiles_of_segments(queries, keys, kind):
    mask = masks.Mask(query_segments=jnp.array([queries], jnp.int32), key_segments=jnp.array([keys], jnp.int32))
    assert int(masks.tiles(masks.Band(), mask, (4, 4), (4, 4)).item()) == kind


@pytest.mark.parametrize("case, scores", [("everything", 1), ("everything", 2 * 16 * 32 * 2), ("bias of keys", 1)])
def test_heads_and_examples_at_a_time(monkeypatch, case, scores):
    """One head of keys, or all of an example, go through the loops together."""
    monkeypatch.setattr(xla, "SCORES", scores)
    check("xla", case, "float64")


def test_a_mask_that_leaves_one_head_everything():
    """Of each group, but not the other head."""
    check("xla", {"mask": coin(3, 1, HEADS, LENGTH, SPAN).at[:, ::2].set(True)}, "float64")


@pytest.mark.parametrize("implementation", BACKENDS)
def test_nothing_is_read_beyond_the_lengths(implementation):
    check_poison(implementation, "float64", 1e30)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_rows_without_keys(implementation):
    """Output 0, lse -inf, gradient 0."""
    query, key, value, *_ = map(jnp.asarray, inputs())
    asked = {"key_value_seq_lengths": jnp.array([0, 4]), "implementation": implementation}
    out, lse = attention(query, key, value, return_residual=True, **asked)
    assert not out[0].any() and (lse[0] == -jnp.inf).all() and jnp.isfinite(lse[1]).all()
    gradients = jax.grad(lambda *qkv: attention(*qkv, **asked).sum(), argnums=(0, 1, 2))(query, key, value)
    assert not any(x[0].any() for x in gradients) and all(jnp.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("asked", [{}, {"is_causal": True, "logits_soft_cap": 2.0}, {"local_window_size": (3, 3)}])
@pytest.mark.parametrize("implementation", BACKENDS)
def test_second_derivatives(implementation, asked):
    query = jnp.asarray(draw(0, 1, 9, 2, 4))

    def hessian(implementation):
        loss = lambda x: (attention(x, x + 1, 2 * x, implementation=implementation, **asked) ** 3).sum()  # noqa: E731
        return jax.jacrev(jax.grad(loss))(query)

    np.testing.assert_allclose(hessian(implementation), hessian("reference"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_vmap_remat_and_jit(implementation):
    query, key, value, *_ = map(jnp.asarray, inputs())
    call = functools.partial(attention, is_causal=True, implementation=implementation)
    wanted = jax.grad(lambda q: call(q, key, value).sum())(query)
    single = jax.vmap(lambda q, k, v: call(q, k, v))(query, key, value)  # without a batch
    np.testing.assert_allclose(single, call(query, key, value), rtol=1e-12, atol=1e-12)
    again = jax.jit(jax.grad(lambda q: jax.checkpoint(call)(q, key, value).sum()))(query)
    np.testing.assert_allclose(again, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", [("data",), (None, None, "data")], ids=["batch", "heads"])
@pytest.mark.parametrize("implementation", BACKENDS)
def test_on_a_mesh(implementation, spec):
    """Batch or heads divided over four devices, by the compiler and by shard_map."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    spec = jax.sharding.PartitionSpec(*spec)
    at = jax.sharding.NamedSharding(mesh, spec)
    arrays = [jnp.asarray(x) for x in inputs((4, 20, 20, 4, 4, 8))[:3]]
    call = functools.partial(attention, is_causal=True, implementation=implementation)

    def gradients(call):
        return jax.jit(jax.grad(lambda *qkv: jnp.sin(call(*qkv)).sum(), argnums=(0, 1, 2)))

    wanted = gradients(call)(*arrays)
    divided = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
    for found in (gradients(call)(*(jax.device_put(x, at) for x in arrays)), gradients(divided)(*arrays)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, wanted)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_keys_that_all_devices_share(implementation):
    """Within shard_map the gradient of what is not divided is the sum over the devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    query, key, value, *_ = map(jnp.asarray, inputs((4, 20, 20, 4, 4, 8)))
    bias = jnp.asarray(draw(6, 4, 20, 20))
    spec = jax.sharding.PartitionSpec(None, "data")
    call = functools.partial(attention, implementation=implementation)
    whole = jax.sharding.PartitionSpec()
    divided = jax.shard_map(call, mesh=mesh, in_specs=(spec, whole, whole, spec), out_specs=spec)
    found, wanted = (
        jax.jit(jax.grad(lambda *asked, f=f: jnp.sin(f(*asked)).sum(), argnums=(0, 1, 2, 3)))(query, key, value, bias)
        for f in (divided, call)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, wanted)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])  # at the last the exponentials of the scores overflow
@pytest.mark.parametrize("implementation", ["reference", *BACKENDS])
def test_large_scores(implementation, scale):
    query, key, value, *_ = inputs()
    call = functools.partial(attention, scale=scale, implementation=implementation)
    found = jax.value_and_grad(lambda *qkv: jnp.sin(call(*qkv)).sum(), argnums=(0, 1, 2))(query, key, value)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain = functools.partial(jax.nn.dot_product_attention, scale=scale)
        wanted = jax.value_and_grad(lambda *qkv: jnp.sin(plain(*qkv)).sum(), argnums=(0, 1, 2))(query, key, value)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), found, wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_against_pytorch(causal):
    torch = pytest.importorskip("torch")
    query, key, value, weigh, _ = map(jnp.asarray, inputs((2, 40, 40, 4, 4, 8)))
    tensors = [torch.tensor(np.asarray(x)).transpose(1, 2).requires_grad_() for x in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
    (out * torch.tensor(np.asarray(weigh)).transpose(1, 2)).sum().backward()
    loss = lambda *qkv: (attention(*qkv, is_causal=causal) * weigh).sum()  # noqa: E731
    for ours, theirs in zip(jax.grad(loss, argnums=(0, 1, 2))(query, key, value), tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.transpose(1, 2).numpy(), rtol=1e-9, atol=1e-11)


def test_dropout_keeps_what_it_should():
    """As many as the rate says, whatever the row, the column or the head; neighbours do not know of each other."""
    seeds = dropout.seeds(jax.random.key(0))
    heads, rows, columns = (jnp.arange(n, dtype=jnp.int32) for n in (8, 256, 256))
    kept = np.asarray(
        dropout.keep(seeds, 0.25, heads[:, None, None], rows[None, :, None], columns[None, None, :]), np.float64
    )
    for axes, count in (((0, 1, 2), kept.size), ((1, 2), 256**2), ((0, 2), 8 * 256), ((0, 1), 8 * 256)):
        deviation = np.sqrt(0.25 * 0.75 / count)
        assert np.abs(kept.mean(axis=axes) - 0.75).max() < 5 * deviation
    centred = kept - 0.75
    for step in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)):
        both = (centred * np.roll(centred, step, (0, 1, 2))).mean() / (0.25 * 0.75)
        assert abs(both) < 5 / np.sqrt(kept.size)
    one = jnp.uint32(1)
    for others in (dropout.seeds(jax.random.key(1)), seeds.at[0].add(one), seeds.at[1].add(one)):  # both count
        other = dropout.keep(others, 0.25, heads[:, None, None], rows[None, :, None], columns[None, None, :])
        assert abs(np.mean(kept == np.asarray(other)) - (0.75**2 + 0.25**2)) < 5e-3


def test_dropout_leaves_the_mean():
    query, key, value, *_ = map(jnp.asarray, inputs())
    rngs = jax.random.split(jax.random.key(0), 500)
    draws = jax.vmap(lambda rng: attention(query, key, value, dropout_rate=0.5, dropout_rng=rng))(rngs)
    np.testing.assert_allclose(draws.mean(axis=0), attention(query, key, value), atol=0.15)


def test_memory_is_linear_in_the_lengths():
    """The compiled program's temporaries, forward and backward: doubled lengths double them."""

    def bytes_of(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        loss = jax.grad(lambda *qkv: attention(*qkv, is_causal=True).sum(), argnums=(0, 1, 2))
        return jax.jit(loss).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_of(1024), bytes_of(4096)  # by tiles, as the table chooses
    assert large < 5 * small and large < 4 * 4096**2 / 4  # a quarter of one head's scores


@pytest.mark.parametrize(
    "shapes, asked, said",
    [
        (((2, 16, 4, 8),) * 2, {"segment_ids": (2, 15)}, "segment_ids must be integers of shape"),
        (((2, 16, 4, 8), (2, 12, 4, 8)), {"segment_ids": (2, 16)}, "need as many keys as queries"),
        (((2, 16, 4, 8),) * 2, {"dropout_rate": 0.5}, "needs dropout_rng"),
        (((2, 16, 4, 8),) * 2, {"dropout_rate": 1.0}, "must be in"),
        (((2, 16, 4, 8),) * 2, {"logits_soft_cap": 0.0}, "above 0"),
    ],
)
def test_mistakes(shapes, asked, said):
    query, key = (jnp.ones(shape, jnp.float32) for shape in shapes)
    asked = {name: jnp.ones(x, jnp.int32) if name == "segment_ids" else x for name, x in asked.items()}
    with pytest.raises(ValueError, match=said):
        attention(query, key, key, **asked)


def test_a_mix_of_dtypes():
    x = jnp.ones((1, 4, 1, 8), jnp.float32)
    with pytest.raises(ValueError, match="one dtype"):
        attention(x, x.astype(jnp.bfloat16), x)


def test_dropout_by_the_numbers_of_heads():
    check_numbers("xla", BOUNDS["float32"])


@pytest.mark.parametrize("implementation", ["reference", *BACKENDS])
def test_a_part_of_the_heads_drops_what_the_whole_does(implementation):
    query, key, value = (jax.random.normal(jax.random.key(i), (2, 16, 4, 8), jnp.float32) for i in range(3))
    call = functools.partial(attention, dropout_rate=0.5, dropout_rng=jax.random.key(4), implementation=implementation)
    part = (slice(1, 2), slice(None), slice(2, 4))
    found = call(query[part], key[part], value[part], dropout_heads=jnp.array([[6, 7]], jnp.int32))
    np.testing.assert_allclose(found, call(query, key, value)[part], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"dropout_heads must be int32 of shape \(2, 4\), not int32 \(1, 2\)"):
        call(query, key, value, dropout_heads=jnp.array([[6, 7]], jnp.int32))
