"""The mesh that a text describes, its errors, and how a batch lies on it. There are eight devices."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deeplearn.errors import UserError
from deeplearn.parallel import mesh, processes


@pytest.mark.parametrize(
    "text, shape",
    [
        ("", (8, 1, 1, 1)),
        ("data:-1", (8, 1, 1, 1)),
        ("data:1", (1, 1, 1, 1)),
        ("fsdp:8", (1, 8, 1, 1)),
        ("fsdp:-1", (1, 8, 1, 1)),
        ("data:2,fsdp:4", (2, 4, 1, 1)),
        ("fsdp:4,data:2", (2, 4, 1, 1)),
        ("data:-1,tensor:2", (4, 1, 1, 2)),
        (" data:2, fsdp: 2 ,tensor:-1", (2, 2, 1, 2)),
        ("data:-1,tensor:8", (1, 1, 1, 8)),
        ("sequence:8", (1, 1, 8, 1)),
        ("tensor:2,sequence:-1,data:2", (2, 1, 2, 2)),
        ("data:3", (3, 1, 1, 1)),
    ],
)
def test_parse(text, shape):
    m = mesh.parse(text)
    assert m.axis_names == ("data", "fsdp", "sequence", "tensor")
    assert m.devices.shape == shape
    assert m.axis_types == (AxisType.Auto,) * 4
    assert {d.id for d in m.devices.flat} == {d.id for d in jax.devices()[: math.prod(shape)]}


@pytest.mark.parametrize(
    "text, devices, message",
    [
        ("dta:8", 8, "unknown mesh axis 'dta'; did you mean data?"),
        ("8", 8, "unknown mesh axis '8'"),
        ("data:2,", 8, "unknown mesh axis ''; there are: data, fsdp, sequence, tensor"),
        ("data:two", 8, "data:two: data must be a whole number from 1, or -1 for the rest, as in data:2"),
        ("data", 8, "mesh data: data must be a whole number"),
        ("data:2.0", 8, "mesh data:2.0: data must be a whole number"),
        ("data:0", 8, "mesh data:0: data must be a whole number from 1"),
        ("fsdp:-2", 8, "mesh fsdp:-2: fsdp must be a whole number from 1"),
        ("data:2,data:4", 8, "names data twice"),
        ("data:-1,fsdp:-1", 8, "only one axis can be -1"),
        ("data:16", 8, "mesh data:16 needs 16 devices, there are 8: data:-1 uses them all"),
        ("data:3", 1, "mesh data:3 needs 3 devices, there are 1: data:-1 uses them all"),
        ("data:2,tensor:8", 8, "needs 16 devices, there are 8: tensor:-1 uses them all"),
        ("data:-1,tensor:16", 8, "needs 16 devices, there are 8: tensor:-1 uses them all"),
        ("data:-1,tensor:3", 8, "mesh data:-1,tensor:3: 8 devices do not divide by 3, only by 1, 2, 4, 8"),
    ],
)
def test_a_wrong_mesh_names_its_remedy(text, devices, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        mesh.parse(text, jax.devices()[:devices])
    assert "\n" not in str(error.value)


@given(st.tuples(*[st.sampled_from([-1, 1, 2, 3, 4, 5, 8])] * 4))
@example((-1, 1, 1, 1))
@example((8, 1, 1, 1))
@example((-1, 8, 1, 1))
@example((-1, 5, 1, 1))
@example((-1, -1, 1, 1))
@example((2, 2, 2, 2))
def test_a_mesh_fills_its_sizes_or_is_refused(sizes):
    text = ",".join(f"{axis}:{size}" for axis, size in zip(mesh.AXES, sizes, strict=True))
    known = math.prod(abs(size) for size in sizes)
    possible = sizes.count(-1) <= 1 and known <= 8 and (-1 not in sizes or 8 % known == 0)
    if not possible:
        with pytest.raises(UserError):
            mesh.parse(text)
        return
    shape = mesh.parse(text).devices.shape
    assert all(got == size for got, size in zip(shape, sizes, strict=True) if size != -1)
    assert math.prod(shape) == (8 if -1 in sizes else known)


@pytest.mark.parametrize(
    "text, size, accumulate, said",
    [
        ("data:1", 7, 1, None),
        ("data:8", 64, 1, None),
        ("data:8", 64, 8, None),
        ("data:4,tensor:2", 4, 1, None),
        ("data:2,sequence:4", 6, 3, None),
        ("data:8", 60, 1, "batch_size 60 does not divide over data x fsdp = 8 devices: 56 or 64 would"),
        ("data:2,fsdp:4", 12, 1, "= 8 devices: 8 or 16 would"),
        ("fsdp:2,tensor:4", 1, 1, "= 2 devices: 2 would"),
        ("data:8", 0, 1, "= 8 devices: 8 would"),
        ("data:8", 480, 40, "batch_size 480 in accumulate = 40 parts does not divide over data x fsdp = 8 devices"),
        ("data:8", 480, 40, "8 devices: accumulate 30 would"),
        ("data:1", 294, 40, "1 devices: accumulate 21 would"),
        ("data:8", 8, 4, "8 devices: accumulate 1 would"),
        ("data:8", 60, 4, "in accumulate = 4 parts does not divide over data x fsdp = 8 devices: 32 or 64 would"),
    ],
)
def test_check_batch_size(text, size, accumulate, said):
    if said is None:
        mesh.check_batch_size(size, mesh.parse(text), accumulate)
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            mesh.check_batch_size(size, mesh.parse(text), accumulate)


ROWS = [("data:1", 16), ("data:8", 2), ("data:2,fsdp:4", 2), ("data:4,tensor:2", 4), ("data:2,sequence:4", 8)]


@pytest.mark.parametrize("text, rows", ROWS)
def test_a_batch_is_divided_by_rows(text, rows):
    m = mesh.parse(text)
    batch = {"image": np.arange(96.0).reshape(16, 3, 2), "label": np.arange(16)}
    placed = jax.device_put(batch, mesh.batch_sharding(m))
    constrained = jax.jit(lambda b: mesh.constrain_batch(b, m))(jax.device_put(batch, mesh.replicated(m)))
    for tree in (placed, constrained):
        assert tree["image"].addressable_shards[0].data.shape == (rows, 3, 2)
        assert tree["label"].addressable_shards[0].data.shape == (rows,)
        jax.tree.map(np.testing.assert_array_equal, tree, batch)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_this_process_along_an_axis(axis):
    m = mesh.parse("data:8")
    whole = np.moveaxis(np.arange(96).reshape(16, 2, 3), 0, axis)
    at = NamedSharding(m, PartitionSpec(*[None] * axis, mesh.BATCH_AXES))
    found = mesh.assemble(whole, mesh.rows_here(m, 16), 16, at, axis)
    assert found.sharding == at
    np.testing.assert_array_equal(found, whole)


def test_a_model_that_does_not_divide_positions():
    import flax.linen as nn

    for model, name in ((nn.Dense(1), "Dense"), (None, "this model")):
        with pytest.raises(UserError, match=f"sequence:4 divides the positions of GPT, not of {name}: give"):
            mesh.check_model(model, mesh.parse("data:2,sequence:4"))
        mesh.check_model(model, mesh.parse("data:2,tensor:4"))


def test_a_constraint_is_free_on_one_device():
    m = mesh.parse("data:1")

    def instructions(f):
        text = jax.jit(f).lower(jnp.ones((16, 4))).compile().as_text()
        return collections.Counter(re.findall(r" = \S+ ([\w-]+)\(", text))

    plain, constrained = (lambda x: jnp.tanh(x) @ x.T), (lambda x: jnp.tanh(mesh.constrain_batch(x, m)) @ x.T)
    assert instructions(plain) == instructions(constrained)


def test_a_mesh_has_devices_of_every_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="mesh data:1 leaves a process without a device: data:-1 takes all 8 devices"):
        mesh.parse("data:1")


def test_the_main_process_is_the_first(monkeypatch):
    assert processes.is_main()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not processes.is_main()
