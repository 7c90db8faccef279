"""Who computes what: the choice by measurement, the reasons not to, and cuDNN's share of the work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import target
from kernels.attention import attention, backends, cudnn
from kernels.attention.masks import Mask
from kernels.attention.request import ask

LENGTHS = jnp.array([4, 7], jnp.int32)


def asked(length=64, depth=64, dtype=jnp.bfloat16, residual=False, batch=2, span=None, **options):
    """Request and arrays of these shapes, without memory."""

    def build():
        x, y = (jnp.zeros((batch, n, 4, depth), dtype) for n in (length, span or length))
        rules = Mask(*(options.get(name) for name in ("query_lengths", "key_lengths", "ids", "key_ids", "mask")))
        band = options.get("is_causal", False), options.get("window")
        drop = (0.1, jax.random.key(0), None) if options.get("dropout") else (0.0, None, None)
        return ask((x, y, y, options.get("bias")), rules, band, (None, options.get("cap")), drop, residual)

    request = None

    def shapes():
        nonlocal request
        request, arrays = build()
        return arrays

    arrays = jax.eval_shape(shapes)
    return request, arrays


@pytest.fixture
def on(monkeypatch):
    """As if on another machine."""

    def pretend(platform, kind=""):
        monkeypatch.setattr(target, "device", lambda: (platform, kind))
        monkeypatch.setattr(cudnn, "installed", lambda: True)

    return pretend


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_fastest_where_it_was_measured(on, platform):
    """Each row of the stored table chooses its own least time."""
    on(platform, "NVIDIA H200")
    for row in backends.measured(platform):
        if not set(row["features"]) <= {"causal"}:
            continue
        request, arrays = asked(row["length"], row["depth"], is_causal="causal" in row["features"])
        ours = {name: seconds for name, seconds in row["seconds"].items() if name in backends.NAMES}
        chosen = backends.fastest(request, arrays)
        assert chosen == min(ours, key=ours.get)
        assert ours[chosen] <= ours.get("cudnn", float("inf"))


def test_the_cpu_was_measured():
    rows = backends.measured("cpu")
    assert [row["length"] for row in rows] == [128, 256, 512, 1024, 2048, 4096]
    assert all({"xla", "reference"} <= set(row["seconds"]) for row in rows)


ONE, OTHER = {"xla": 2.0, "cudnn": 1.0}, {"xla": 1.0, "cudnn": 2.0}


@pytest.mark.parametrize(
    "rows, options, chosen",
    [
        ([(1024, 64, (), ONE)], {}, "cudnn"),
        ([(1024, 64, (), OTHER)], {}, "xla"),
        ([(1024, 64, (), ONE)], {"cap": 2.0}, "xla"),  # which cuDNN can't do
        ([(64, 64, (), ONE), (4096, 64, (), OTHER)], {}, "cudnn"),
        ([(64, 64, (), ONE), (4096, 64, (), OTHER)], {"length": 3000}, "xla"),
        ([(64, 64, (), ONE), (64, 128, (), OTHER)], {"depth": 128}, "xla"),
        ([(64, 64, (), ONE), (4096, 64, ("causal",), OTHER)], {"is_causal": True}, "xla"),
        ([(64, 64, (), {"others": 0.1, "xla": 2.0, "reference": 1.0})], {}, "reference"),
    ],
)
def test_the_nearest_measurement(monkeypatch, on, rows, options, chosen):
    """Features first, then length and depth; never one that can't do it, or that is not ours."""
    on("cuda", "NVIDIA H200")
    names = ("length", "depth", "features", "seconds")
    monkeypatch.setattr(backends, "measured", lambda platform: [dict(zip(names, row, strict=True)) for row in rows])
    assert backends.fastest(*asked(**options)) == chosen


@pytest.mark.parametrize(
    "platform, options, chosen",
    [
        ("cuda", {}, "cudnn"),
        ("cuda", {"cap": 1.0}, "xla"),
        ("cuda", {"dtype": jnp.float32}, "xla"),
        ("rocm", {}, "xla"),
    ],
)
def test_where_nothing_was_measured(monkeypatch, on, platform, options, chosen):
    on(platform, "some device")
    monkeypatch.setattr(backends, "measured", lambda platform: [])
    assert backends.fastest(*asked(**options)) == chosen


def test_without_cudnn(monkeypatch, on):
    """As where a program is compiled for a GPU that is not here."""
    on("cuda", "NVIDIA H200")
    monkeypatch.setattr(cudnn, "installed", lambda: False)
    assert backends.fastest(*asked()) == "xla"
    assert backends.refusal(*asked(), "cudnn") == "is not installed here"


def test_it_is_not_installed_beside_a_cpu():
    assert not cudnn.installed()


def test_formulas_are_the_reference():
    """One product for the scores, one with the values: what is counted; not the loops that run."""
    x = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)
    with target.formulas():
        text = jax.jit(lambda x: attention(x, x, x)).lower(x).as_text()
    assert text.count("dot_general") == 2 and "while" not in text
    assert "while" in jax.jit(lambda x: attention(x, x, x)).lower(x).as_text()


def test_a_tpu_kernel_only_where_nothing_divides_it(on):
    """By default: one that is named may be on a single chip of several."""
    on("tpu", "TPU v5 lite")
    one, two = (jax.sharding.Mesh(np.array(jax.devices()[:n]), ("data",)) for n in (1, 2))
    assert backends.fastest(*asked()) == "xla"  # there are eight devices, and no mesh
    with jax.set_mesh(one):
        assert backends.fastest(*asked()) == "tpu"
    with jax.set_mesh(two):
        assert backends.fastest(*asked()) == "xla"
    with jax.set_mesh(jax.sharding.Mesh(two.devices, ("data",), axis_types=(jax.sharding.AxisType.Explicit,))):
        assert backends.fastest(*asked()) == "tpu"


@pytest.mark.parametrize("name, platform", [("tpu", "tpu"), ("hopper", "cuda"), ("cudnn", "cuda")])
def test_another_machine_is_needed(name, platform):
    x = jnp.zeros((1, 16, 2, 8), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=f"implementation='{name}' runs on {platform}, and this is cpu"):
        attention(x, x, x, implementation=name)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, None),
        ({"is_causal": True}, None),
        ({"is_causal": True, "window": 8}, None),
        ({"window": (8, 0)}, None),
        ({"window": (8, 0), "span": 56}, None),  # the last query sees the last key
        ({"window": (8, 0), "span": 55}, "outside of every window"),
        ({"query_lengths": LENGTHS, "key_lengths": LENGTHS}, None),
        ({"bias": jnp.zeros((1, 4, 64, 64), jnp.bfloat16), "batch": 1}, None),
        ({"dtype": jnp.float32}, "float16 and bfloat16"),
        ({"depth": 20}, "multiples of 8"),
        ({"depth": 512}, "up to 256"),
        ({"cap": 1.0}, "no soft cap"),
        ({"ids": jnp.zeros((2, 64), jnp.int32)}, "no segments"),
        ({"window": (8, 8)}, "left of a causal mask"),
        ({"mask": jnp.ones((64, 64), bool)}, "a mask leaves nothing"),
        ({"dropout": True}, "numbers of its own"),
        ({"residual": True}, "log-sum-exp"),
        ({"bias": jnp.zeros((1, 4, 64, 64), jnp.bfloat16)}, "one example alone"),
        ({"bias": jnp.zeros((4, 1, 64), jnp.bfloat16), "batch": 1}, "one example alone"),
        ({"bias": jnp.zeros((1, 4, 63, 63), jnp.bfloat16), "batch": 1, "length": 63}, "even numbers"),
    ],
)
def test_what_cudnn_can_do(options, reason):
    found = cudnn.refuses(*asked(**options))
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"is_causal": True, "local_window_size": 3},
        {"query_seq_lengths": LENGTHS, "key_value_seq_lengths": jnp.array([9, 0], jnp.int32)},
    ],
    ids=str,
)
def test_cudnn_gets_the_arguments(monkeypatch, options):
    """As jax.nn's own formula understands them: values, gradients, forward mode, and second derivatives.

    Compiled by themselves and in a loop too, where the backward pass gets what the forward pass kept.
    """
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(cudnn, "installed", lambda: True)
    keys = jax.random.split(jax.random.key(0), 3)
    query, key, value = (jax.random.normal(seed, (2, 9, 4, 8), jnp.bfloat16) for seed in keys)

    def results(name):
        call = functools.partial(attention, implementation=name, **options)
        loss = lambda *qkv: (call(*qkv).astype(jnp.float32) ** 2).sum()  # noqa: E731
        first = lambda query: jax.grad(loss)(query, key, value)  # noqa: E731
        one, other = jax.jit(first), jax.jit(lambda query: call(query, key, value))
        loop = lambda query: jax.lax.scan(lambda x, _: (other(x), None), query, length=2)[0]  # noqa: E731
        return (
            jax.grad(loss, argnums=(0, 1, 2))(query, key, value),
            jax.jvp(other, (query,), (value,)),
            jax.jvp(one, (query,), (value,)),
            jax.grad(lambda query: (one(query).astype(jnp.float32) ** 2).sum())(query),
            jax.grad(lambda query: loop(query).astype(jnp.float32).sum())(query),
        )

    with target.interpreted("anything"), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for ours, theirs in zip(*(jax.tree.leaves(results(name)) for name in ("cudnn", "reference")), strict=True):
            assert ours.dtype == jnp.bfloat16 and jnp.isfinite(ours.astype(jnp.float32)).all()
            ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
            assert np.linalg.norm(ours - theirs) < 0.03 * np.linalg.norm(theirs)
