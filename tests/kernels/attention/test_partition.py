"""Kernels on a mesh, divided by XLA's partitioner: the mechanism, with the implementation in plain JAX for a kernel."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.attention import attention, partition
from tests.kernels.attention.modes import PRODUCTS, compare, results

BATCH, LENGTH, HEADS, DEPTH = 4, 24, 4, 8
ARRAYS = {
    "plain": {},
    "causal": {"is_causal": True},
    "segments": {"segment_ids": jnp.sort(jax.random.randint(jax.random.key(9), (BATCH, LENGTH), 0, 4), axis=1)},
    "lengths and a mask": {
        "mask": jax.random.bernoulli(jax.random.key(1), 0.5, (1, HEADS, LENGTH, 1)),
        "key_value_seq_lengths": jnp.array([5, 24, 0, 9]),
    },
    "dropout": {"dropout_rate": 0.3, "dropout_rng": jax.random.key(3)},
    "bias of heads": {"bias": (1, HEADS, LENGTH, LENGTH)},
    "bias of keys": {"bias": (BATCH, 1, 1, LENGTH)},
}
MESHES = {
    "examples": P("a"),
    "examples over both": P(("a", "b")),
    "heads": P(None, None, "a"),
    "examples and heads": P("a", None, "b"),
    "positions": P(None, "a"),
}


@pytest.fixture(autouse=True)
def as_a_kernel(monkeypatch):
    monkeypatch.setattr(partition, "KERNELS", ("xla",))


@pytest.fixture
def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def gradients(implementation, learned, **asked):
    """Of a sum over output and log-sum-exp, jitted."""
    weigh = draw(9, BATCH, LENGTH, HEADS, DEPTH)

    def loss(*learned):
        out, lse = attention(*learned, return_residual=True, implementation=implementation, **asked)
        return (out * weigh).sum() + jnp.where(jnp.isfinite(lse), lse, 0.0).sum()

    return jax.jit(jax.grad(loss, argnums=tuple(range(len(learned)))))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("case", ARRAYS)
def test_the_same_gradients_on_every_mesh(mesh, case, groups):
    """Those of one device, without a collective but the sums of what is shared; positions are gathered."""
    asked = dict(ARRAYS[case])
    heads = HEADS, groups, groups
    learned = [draw(i, BATCH, LENGTH, n, DEPTH) for i, n in enumerate(heads)]
    shared = [draw(7, *asked.pop("bias"))] if "bias" in asked else []
    wanted = gradients("reference", learned + shared, **asked)(*learned, *shared)
    for name, spec in MESHES.items():
        placed = []
        for x, n in zip(learned, heads, strict=True):
            placed.append(jax.device_put(x, NamedSharding(mesh, spec if n % 2 == 0 else P(*spec[:2]))))
        placed += [jax.device_put(x, NamedSharding(mesh, P())) for x in shared]
        compute = gradients("xla", placed, **asked)
        for ours, theirs in zip(compute(*placed), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
        program = compute.lower(*placed).compile().as_text()
        counted = {
            kind: len(re.findall(rf"= .* {kind}(?:-start)?\(", program)) for kind in ("all-gather", "all-reduce")
        }
        assert (counted["all-gather"] > 0) == (name == "positions")
        if not shared and groups > 1:
            assert not counted["all-reduce"]


@pytest.mark.parametrize("name", ["examples", "heads", "examples and heads"])
@pytest.mark.parametrize("case", ["causal", "segments", "dropout", "bias of heads", "bias of keys"])
def test_meshes_of_explicit_axes(monkeypatch, case, name):
    """Where types say how arrays are divided, every implementation goes by them."""
    monkeypatch.setattr(partition, "KERNELS", ())
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"), axis_types=explicit)
    asked = dict(ARRAYS[case])
    learned = [draw(i, BATCH, LENGTH, n, DEPTH) for i, n in enumerate((HEADS, 2, 2))]
    shared = [draw(7, *asked.pop("bias"))] if "bias" in asked else []

    def loss(implementation, weigh):
        def of(*learned):
            out = attention(*learned, implementation=implementation, **asked)
            return (out * weigh).sum()

        return jax.jit(jax.grad(of, argnums=tuple(range(len(learned) + len(shared)))))

    weigh = draw(9, BATCH, LENGTH, HEADS, DEPTH)
    wanted = loss("reference", weigh)(*learned, *shared)
    with jax.set_mesh(mesh):
        at = NamedSharding(mesh, MESHES[name])
        placed = [jax.device_put(x, at) for x in learned] + [
            jax.device_put(x, NamedSharding(mesh, P())) for x in shared
        ]
        found = loss("xla", jax.device_put(weigh, at))(*placed)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("case", ["dropout", "bias of keys"])
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_derivatives_in_both_modes(monkeypatch, axes, case, implementation):
    """A forward and a backward pass that cannot be differentiated, and what is derived from them in plain JAX."""
    monkeypatch.setattr(partition, "KERNELS", ("xla",) if axes == "Auto" else ())
    kinds = (jax.sharding.AxisType[axes],) * 2
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"), axis_types=kinds)
    asked = dict(ARRAYS[case])
    x = [draw(i, BATCH, LENGTH, n, DEPTH) for i, n in enumerate((HEADS, 2, 2))]
    x += [draw(7, *asked.pop("bias"))] if "bias" in asked else []
    v = [draw(20 + i, *a.shape) for i, a in enumerate(x)]

    def found(implementation, x, v):
        call = functools.partial(attention, return_residual=True, implementation=implementation, **asked)
        return results(lambda q, k, v, bias=None: call(q, k, v, bias), tuple(x), tuple(v), PRODUCTS)

    wanted = found("reference", x, v)
    at, everywhere = NamedSharding(mesh, MESHES["examples and heads"]), NamedSharding(mesh, P())
    with jax.set_mesh(mesh) if axes == "Explicit" else contextlib.nullcontext():
        placed = ([jax.device_put(a, everywhere if a.shape[1] == 1 else at) for a in arrays] for arrays in (x, v))
        compare(found(implementation, *placed), wanted, 1e-5)


def test_key_heads_that_do_not_divide(mesh):
    """Four devices for the heads, two heads of keys: the heads stay together."""
    learned = [draw(i, BATCH, LENGTH, n, DEPTH) for i, n in enumerate((HEADS, 2, 2))]
    wanted = gradients("reference", learned)(*learned)
    at = NamedSharding(mesh, P(None, None, ("a", "b")))
    placed = [jax.device_put(learned[0], at), *learned[1:]]
    for ours, theirs in zip(gradients("xla", placed)(*placed), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_vmap_shard_map_and_second_derivatives(mesh):
    query, key, value = (draw(i, BATCH, LENGTH, HEADS, DEPTH) for i in range(3))
    call = functools.partial(attention, is_causal=True, implementation="xla")
    wanted = call(query, key, value)
    np.testing.assert_allclose(jax.vmap(lambda *qkv: call(*qkv))(query, key, value), wanted, rtol=1e-5, atol=1e-6)
    divided = jax.shard_map(call, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    np.testing.assert_allclose(divided(query, key, value), wanted, rtol=1e-5, atol=1e-6)

    def second(name):
        first = jax.grad(lambda x: (attention(x, key, value, is_causal=True, implementation=name) ** 2).sum())
        return jax.grad(lambda x: (first(x) ** 2).sum())(query)

    np.testing.assert_allclose(second("xla"), second("reference"), rtol=1e-3, atol=1e-4)
