"""Derivatives in forward mode, and second and third ones in all combinations of modes, against the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention, xla
from tests.kernels.attention.cases import BOUNDS, draw, inputs
from tests.kernels.attention.modes import FIRST, PRODUCTS, SECOND, THIRD, check


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of queries and keys, of which the last are not whole."""
    monkeypatch.setattr(xla, "TILE", (16, 32))


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    "case, modes",
    [
        *((case, PRODUCTS) for case in ("plain", "no keys", "soft cap", "bias of heads", "bias of keys")),
        ("causal", FIRST | SECOND),
        ("everything", FIRST | SECOND),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{len(x)} modes",
)
def test_first_and_second(small_tiles, case, modes):
    """By query, key, value and bias, of output and log-sum-exp."""
    check("xla", case, modes, "float64", BOUNDS["float64"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(small_tiles, dtype):
    check("xla", "everything", PRODUCTS, dtype, 2 * BOUNDS[dtype])


@pytest.mark.parametrize("length", [1, 12, 400, 600, 1025])
def test_every_length(length):
    """Whatever implementation is chosen there, and however many tiles it has."""
    check(None, {"is_causal": True}, PRODUCTS, "float64", BOUNDS["float64"], inputs((1, length, length, 1, 1, 2)))


def test_third(small_tiles):
    """Which go through the formula."""
    case = {"is_causal": True, "bias": draw(9, 2, 1, 20)}
    check("xla", case, THIRD, "float64", BOUNDS["float64"], inputs((1, 20, 20, 2, 1, 2)))


TRANSFORMS = {
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "jacrev": lambda f, x: jax.jacrev(f)(x),
    "hessian": lambda f, x: jax.hessian(lambda x: (f(x) ** 3).sum())(x),
    "vmap of products": lambda f, x: jax.vmap(
        lambda x, v: jax.jvp(jax.grad(lambda x: (f(x) ** 3).sum()), (x,), (v,))[1], in_axes=(None, 1)
    )(x, jnp.stack([x, x**2], axis=1)),
    "products of vmap": lambda f, x: jax.jvp(
        jax.grad(lambda x: (jax.vmap(f, in_axes=-1)(jnp.stack([x, x**2], axis=-1)) ** 3).sum()), (x,), (x,)
    )[1],
    "checkpoint": lambda f, x: jax.jvp(jax.grad(lambda x: (jax.checkpoint(f)(x) ** 3).sum()), (x,), (x,))[1],
    "scan": lambda f, x: jax.jvp(
        jax.grad(lambda x: (jax.lax.scan(lambda x, _: (f(x), None), x, length=2)[0] ** 3).sum()), (x,), (x,)
    )[1],
    "jit of each": lambda f, x: jax.jvp(jax.jit(jax.grad(lambda x: (jax.jit(f)(x) ** 3).sum())), (x,), (x,))[1],
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_under_other_transformations(small_tiles, transform):
    """With several tiles of keys, some of which two examples share."""

    def found(implementation):
        shared = jnp.asarray(draw(1, 1, 40, 1, 2))
        key = lambda x: jnp.concatenate([x, shared], axis=1)  # noqa: E731
        call = functools.partial(attention, is_causal=True, implementation=implementation)
        return TRANSFORMS[transform](lambda x: call(x, key(x + 1), key(2 * x)), jnp.asarray(draw(0, 1, 5, 1, 2)))

    np.testing.assert_allclose(found("xla"), found("reference"), rtol=1e-9, atol=1e-9)


def test_the_formula_against_differences():
    x, v = (jnp.asarray(draw(i, 1, 20, 2, 4)) for i in range(2))
    loss = lambda x: jnp.sin(attention(x, x + 1, x**2, implementation="reference")).sum()  # noqa: E731
    step = 1e-4
    ahead, behind = x + step * v, x - step * v
    found = jax.jvp(loss, (x,), (v,))[1], jax.jvp(jax.grad(loss), (x,), (v,))[1]
    wanted = loss(ahead) - loss(behind), jax.grad(loss)(ahead) - jax.grad(loss)(behind)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [*PRODUCTS, "reverse over forward", "reverse over reverse"])
def test_memory_is_linear_in_the_lengths(mode):
    """The compiled program's temporaries: four times the length takes less than five times the memory."""

    def bytes_of(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        f = lambda x: attention(x, x, x, is_causal=True)  # noqa: E731
        call = lambda x, v: (PRODUCTS | SECOND)[mode](f, lambda x: (f(x) ** 2).sum(), x, v)  # noqa: E731
        return jax.jit(call).lower(x, x).compile().memory_analysis().temp_size_in_bytes

    small, large = bytes_of(1024), bytes_of(4096)
    assert large < 5 * small and large < 4 * 4096**2  # one head's scores
