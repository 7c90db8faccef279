"""First and second derivatives in forward mode, reverse mode and their combinations: the same of two functions."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import attention
from tests.kernels.attention.cases import CASES, distance, draw, inputs


def dot(a, b):
    """Over all arrays of two trees."""
    return sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# From f, a scalar loss of the same x, x and a direction v to what is compared.
FIRST = {
    "forward": lambda f, loss, x, v: jax.jvp(f, (x,), (v,)),
    "linearized": lambda f, loss, x, v: jax.linearize(f, x)[1](v),
    "transposed": lambda f, loss, x, v: jax.linear_transpose(jax.linearize(f, x)[1], x)(f(x)),
}
SECOND = {
    "forward over reverse": lambda f, loss, x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1],
    "reverse over forward": lambda f, loss, x, v: jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1])(x),
    "reverse over reverse": lambda f, loss, x, v: jax.grad(lambda x: dot(jax.grad(loss)(x), v))(x),
    "forward over forward": lambda f, loss, x, v: jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (x,))[1],
}
PRODUCTS = {"forward": FIRST["forward"], "forward over reverse": SECOND["forward over reverse"]}
THIRD = {
    "reverse, three times": lambda f, loss, x, v: jax.grad(
        lambda x: dot(jax.grad(lambda x: dot(jax.grad(loss)(x), v))(x), v)
    )(x),
    "forward, three times": lambda f, loss, x, v: jax.jvp(
        lambda x: jax.jvp(lambda x: jax.jvp(f, (x,), (v,))[1], (x,), (x,))[1], (x,), (v,)
    ),
    "forward over reverse over forward": lambda f, loss, x, v: jax.jvp(
        jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1]), (x,), (x,)
    ),
    "by the direction": lambda f, loss, x, v: jax.grad(
        lambda v: jax.jvp(lambda x: jax.jvp(loss, (x,), (v,))[1], (x,), (x,))[1]
    )(v),
}


def results(call, x, v, modes):
    """Of `call(*x) -> (out, lse)`, by the names of the modes."""

    def f(x):
        out, lse = call(*x)
        return out, jnp.where(jnp.isfinite(lse), lse, 0.0)

    def loss(x):
        out, lse = f(x)
        return jnp.sin(out.astype(jnp.float32 if out.dtype.itemsize < 4 else out.dtype)).sum() + (lse**2).sum()

    return jax.jit(lambda x, v: {name: mode(f, loss, x, v) for name, mode in modes.items()})(x, v)


def arguments(case, dtype, arrays=None):
    """What is learned in a case (a name in CASES, or what is asked itself), a direction, and what else is asked."""
    asked = dict(CASES[case] if isinstance(case, str) else case)
    learned = [*(inputs() if arrays is None else arrays)[:3]]
    learned += [asked.pop("bias")] if "bias" in asked else []
    x = tuple(jnp.asarray(a).astype(dtype) for a in learned)
    v = tuple(jnp.asarray(draw(20 + i, *a.shape)).astype(dtype) for i, a in enumerate(x))
    return x, v, asked


def check(implementation, case, modes, dtype, bound, arrays=None):
    """Against the formula in float64 of the numbers that the dtype has."""
    x, v, asked = arguments(case, dtype, arrays)

    def call(implementation):
        return lambda *x: attention(*x, return_residual=True, implementation=implementation, **asked)

    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)  # noqa: E731
    compare(results(call(implementation), x, v, modes), results(call("reference"), wide(x), wide(v), modes), bound)


def compare(found, wanted, bound):
    assert found.keys() == wanted.keys()
    for name, ours in found.items():
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted[name]), strict=True):
            a, b = (np.asarray(x, np.float64) for x in (a, b))
            assert np.isfinite(a).all() and distance(a, b) < bound, name
