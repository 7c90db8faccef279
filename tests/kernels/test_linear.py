"""A linear map with a transpose and a derivative of its own, under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.linear import Map, linear


# L(a, n) (t, u) = (s a t[n] + u, a u). The transpose is twice the true one, to tell it from what JAX would make.
def transpose(s, r, c):
    return jnp.zeros_like(c[0]).at[r["n"]].set(2 * s * r["a"] * c[0]), 2 * c[0] + 2 * r["a"] * c[1]


OWN = Map(
    apply=lambda s, r, t: (s * r["a"] * t[0][r["n"]] + t[1], r["a"] * t[1]),
    transpose=transpose,
    derivative=lambda s, r, dr, t: (s * dr["a"] * t[0][r["n"]], dr["a"] * t[1]),
    types=lambda r, t: (t[0], t[1]),
)
PLACES = jnp.array([2, 0, 1])


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def ours(a, t, u):
    return linear(OWN, 3.0, {"a": a, "n": PLACES}, (t, u))


def plain(a, t, u):
    return 3.0 * a * t[PLACES] + u, a * u


def close(found, wanted):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, wanted)


def arguments():
    return tuple(draw(i, 3) for i in range(3))


@pytest.mark.parametrize("jit", [False, True])
def test_forward_mode_is_the_map_and_the_derivative(jit):
    found, wanted = (
        (jax.jit if jit else lambda f: f)(lambda *x, f=f: jax.jvp(f, x, x[::-1]))(*arguments()) for f in (ours, plain)
    )
    close(found, wanted)


def test_reverse_mode_is_the_transpose():
    """By what is linear; with respect to the residuals it is the transpose of the derivative."""
    a, t, u = arguments()
    cotangents = draw(4, 3), draw(5, 3)
    (da, dt, du), (wanted_a, wanted_t, wanted_u) = (jax.vjp(f, a, t, u)[1](cotangents) for f in (ours, plain))
    close((da, dt, du), (wanted_a, 2 * wanted_t, 2 * wanted_u))
    (dt,) = jax.vjp(lambda t: ours(a, t, u), t)[1](cotangents)
    close(dt, 2 * wanted_t)


def test_the_transpose_replaces_the_map_in_the_program():
    """What is only transposed is not computed: of the map's cosine nothing is left."""
    own = Map(lambda s, r, t: jnp.cos(r) * t, lambda s, r, c: jnp.sin(r) * c, None, lambda r, t: t)
    text = jax.jit(jax.grad(lambda t, r: linear(own, None, r, t))).lower(1.0, 2.0).as_text()
    assert "sine" in text and "cosine" not in text


def test_derivatives_of_a_higher_order():
    """A direction that is differentiated too, and the map's derivative by its residuals in both modes."""
    a, t, u = arguments()
    for second in (
        lambda f: jax.grad(lambda a: jax.jvp(lambda a: sum(x.sum() for x in f(a, a * t, u)), (a,), (t,))[1])(a),
        lambda f: jax.jvp(lambda a: jax.jvp(lambda a: f(a, a**2, u), (a,), (t,))[1], (a,), (u,))[1],
        lambda f: jax.jacfwd(jax.jacfwd(lambda a: f(a, a**2, a)))(a),
    ):
        close(second(ours), second(plain))


AXES = [(0, 0, 0), (None, 0, 0), (0, None, None), (1, None, 0), (None, 1, None)]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_vmap(axes):
    """Of residuals and what is linear, or of some; the transpose is still the map's own."""
    several = lambda v, axis: jnp.stack([v, v**2, v + 1, 2 * v], axis)  # noqa: E731
    x = tuple(v if axis is None else several(v, axis) for v, axis in zip(arguments(), axes, strict=True))
    found, wanted = (jax.vmap(f, in_axes=axes) for f in (ours, plain))
    close(found(*x), wanted(*x))
    close(jax.jvp(found, x, x), jax.jvp(wanted, x, x))
    cotangents = draw(4, 4, 3), draw(5, 4, 3)
    close(jax.vjp(found, *x)[1](cotangents)[1:], jax.tree.map(lambda d: 2 * d, jax.vjp(wanted, *x)[1](cotangents)[1:]))
    for axes in ((0, None, 0), (None, 0, None)):  # of which the inner one is the map's first
        deep = tuple(jnp.stack([v, 3 * v]) if axis == 0 else v for v, axis in zip(x, axes, strict=True))
        twice = [jax.vmap(f, in_axes=axes) for f in (found, wanted)]
        close(twice[0](*deep), twice[1](*deep))
        cotangents = draw(6, 2, 4, 3), draw(7, 2, 4, 3)
        pulled = (jax.vjp(f, *deep)[1](cotangents)[1:] for f in twice)
        close(next(pulled), jax.tree.map(lambda d: 2 * d, next(pulled)))


def test_in_a_loop_under_checkpoint():
    a, t, u = arguments()

    def loss(f):
        def looped(t):
            step = jax.checkpoint(lambda t, _: (f(jnp.cos(t), t, u)[0], None))
            return jax.lax.scan(step, t, None, length=3)[0].sum()

        return looped

    close(jax.jvp(loss(ours), (t,), (u,)), jax.jvp(loss(plain), (t,), (u,)))
    assert jnp.isfinite(jax.grad(loss(ours))(t)).all()


def test_shard_map():
    """What all devices share has the sum of their cotangents."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    a, t, u = draw(0, 2, 3), draw(1, 3), draw(2, 2, 3)

    def loss(f):
        each = lambda a, t, u: f(a[0], t, u[0])[0][None]  # noqa: E731
        divided = jax.shard_map(each, mesh=mesh, in_specs=(P("data"), P(), P("data")), out_specs=P("data"))
        return lambda t: divided(a, t, u).sum()

    found, wanted = (jax.value_and_grad(loss(f))(t) for f in (ours, plain))
    close(found, (wanted[0], 2 * wanted[1]))
    close(jax.jvp(loss(ours), (t,), (t,)), jax.jvp(loss(plain), (t,), (t,)))


def test_without_jit():
    with jax.disable_jit():
        close(ours(*arguments()), plain(*arguments()))
