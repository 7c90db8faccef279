"""Convolution on a mesh: divided by XLA, as a kernel is with the forms for a CPU in its place, and by explicit axes."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.convolution import convolution, convolution_transpose, partition

SPECS = {  # of x and w
    "images": (P("a"), P()),
    "images over both": (P(("a", "b")), P()),
    "channels": (P(), P(None, None, None, "a")),
    "images and channels": (P("a"), P(None, None, None, "b")),
}


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make_mesh(**kind):
    return jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"), **kind)


def gradients(groups, **options):
    """Value and gradients, jitted, of a layer with all that follows it."""

    def loss(x, w, bias, residual):
        more = {"strides": 2, "groups": groups, "activation": "silu", "residual": residual}
        return (convolution(x, w, bias, **more, **options) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


def operands(groups):
    return draw(0, 4, 7, 6, 8), draw(1, 3, 3, 8 // groups, 12), draw(2, 12), draw(3, 4, 4, 3, 12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_the_same_gradients_on_every_mesh(monkeypatch, name, kernel, groups):
    """Those of one device; a divided batch needs no collective but the sum of the weights' gradients."""
    monkeypatch.setattr(partition, "KERNELS", ("xla",) if kernel else ())
    wanted = gradients(groups, implementation="reference")(*operands(groups))
    mesh = make_mesh()
    specs = (*SPECS[name], P(), P(*SPECS[name][0]))
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(operands(groups), specs, strict=True)]
    compute = gradients(groups, implementation="xla")
    for ours, theirs in zip(jax.tree.leaves(compute(*placed)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)
    program = compute.lower(*placed).compile().as_text()
    if kernel and name.startswith("images over"):
        assert re.search(r" all-reduce(-start)?\(", program) and not re.search(r" all-gather(-start)?\(", program)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", SPECS)
def test_meshes_of_explicit_axes(name, groups):
    wanted = gradients(groups, implementation="reference")(*operands(groups))
    mesh = make_mesh(axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    specs = (*SPECS[name], P(), P(*SPECS[name][0]))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(operands(groups), specs, strict=True)]
        found = gradients(groups)(*placed)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def test_the_transpose_by_explicit_axes():
    x, w = draw(0, 4, 5, 5, 8), draw(1, 4, 4, 8, 6)
    wanted = convolution_transpose(x, w, strides=2)
    with jax.set_mesh(make_mesh(axis_types=(jax.sharding.AxisType.Explicit,) * 2)):
        placed = jax.device_put(x, P("a")), jax.device_put(w, P(None, None, None, "b"))
        found = jax.jit(lambda x, w: convolution_transpose(x, w, strides=2))(*placed)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_within_shard_map():
    """The gradient of weights that all devices share is summed over them."""
    x, w = draw(0, 4, 6, 6, 8), draw(1, 3, 3, 8, 6)
    loss = lambda x, w: (convolution(x, w) ** 2).sum()  # noqa: E731

    def of_a_part(x, w):
        value, found = jax.value_and_grad(lambda w: loss(x, w))(w)
        return jax.lax.psum(value, "a"), found

    divided = jax.shard_map(of_a_part, mesh=make_mesh(), in_specs=(P("a"), P()), out_specs=(P(), P()))
    for ours, theirs in zip(divided(x, w), jax.value_and_grad(loss, argnums=1)(x, w), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape, kernel, options",
    [
        ((8, 16, 16, 32), (3, 3, 1, 32), {"groups": 32}),
        ((8, 17, 15, 32), (3, 3, 1, 32), {"groups": 32, "strides": 2}),
        ((8, 16, 16, 24), (1, 1, 24, 32), {}),
        ((8, 16, 16, 128), (3, 3, 128, 128), {}),
        ((8, 8, 8, 256), (3, 3, 256, 256), {}),
        ((8, 16, 16, 24), (3, 3, 24, 32), {"strides": 2}),
        ((8, 16, 16, 24), (3, 3, 12, 32), {"groups": 2, "dilation": 2}),
    ],
    ids=str,
)
def test_divided_images_need_one_sum(shape, kernel, options):
    """That of the weights' gradient over the devices, whatever the form."""
    mesh = make_mesh()
    x = jax.device_put(draw(0, *shape), NamedSharding(mesh, P(("a", "b"))))
    w = jax.device_put(draw(1, *kernel), NamedSharding(mesh, P()))

    def gradients(x, w):
        y, pull = jax.vjp(lambda x, w: convolution(x, w, **options, implementation="xla"), x, w)
        return pull(y)

    program = jax.jit(gradients).lower(x, w).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert re.findall(rf" ({kinds})(?:-start)?\(", program) == ["all-reduce"]
