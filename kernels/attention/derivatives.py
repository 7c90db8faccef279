"""The derivatives of attention in forward and reverse mode, from the passes of an implementation.

With f(x) the output and the log-sum-exp for the learned arrays x (query, key, value, bias), and cotangents u of both:

    tangent     f'(x) dx                       linear in dx; its transpose is `gradients`
    gradients   g(x, u) = f'(x)^T u
    curvature   g's derivative: H(x, u) dx + f'(x)^T du, where H = d^2(u . f) / dx^2 is symmetric
    bend        f''(x)[v, dx], the derivative of `tangent` by x; linear in dx, its transpose is u -> H(x, u) v

First and second derivatives in all combinations of modes need the forward and the backward pass, `tangent`, and, in
forward mode, the derivatives of `tangent` and of a backward pass in plain JAX. Their memory is linear in the lengths.
Higher derivatives are those of the formula, and need the memory of all scores.
"""

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.attention.request import Arrays
from kernels.linear import Map, linear


class Passes(NamedTuple):
    """An implementation of attention. Every function takes `static` first.

    Fields:
      static: what is known when the program is compiled.
      forward: (static, arrays) -> (out, lse, ...): (B, T, N, D) of query's dtype, (B, N, T) of `request.wide` or None,
        and what else the backward pass needs.
      backward: (static, arrays, found, d_out, d_lse) -> gradients of query, key, value and bias (None without one).
        found is what forward returns; d_lse is None if lse is.
      tangent: (static, arrays, out, lse, dx) -> (d_out, d_lse). dx has the tangents of query, key, value and bias. In
        plain JAX that can be differentiated in forward mode.
      plain: (static, arrays, out, lse, d_out, d_lse) -> the same as backward, in plain JAX that can be differentiated
        in forward mode.
      formula: (static, arrays) -> (out, lse), in plain JAX that can be differentiated in both modes.
    """

    static: Hashable
    forward: Callable
    backward: Callable
    tangent: Callable
    plain: Callable
    formula: Callable


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def attention(passes: Passes, arrays: Arrays) -> tuple:
    """What `passes.forward` gives, with derivatives with respect to query, key, value and bias."""
    return passes.forward(passes.static, arrays)


@attention.defjvp
def _attention_jvp(passes, primals, tangents):
    (arrays,), (d_arrays,) = primals, tangents
    found = attention(passes, arrays)
    d_found = linear(TANGENT, passes, (arrays, found), learned(d_arrays))
    return found, (*d_found, *jax.tree.map(_no_tangent, found[2:]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def gradients(passes: Passes, arrays: Arrays, found: tuple, cotangents: tuple) -> tuple:
    """What `passes.backward` gives, with derivatives with respect to the learned arrays and the cotangents."""
    return passes.backward(passes.static, arrays, found, *cotangents)


@gradients.defjvp
def _gradients_jvp(passes, primals, tangents):
    d_arrays, _, d_cotangents = tangents  # what the forward pass found follows from the arrays
    return gradients(passes, *primals), linear(CURVATURE, passes, primals, (learned(d_arrays), d_cotangents))


def learned(arrays: Arrays) -> tuple:
    """What has derivatives: query, key, value, bias."""
    return tuple(arrays[:4])


def _replaced(arrays, x):
    return Arrays(*x, *arrays[4:])


def _no_tangent(x):
    return jnp.zeros(x.shape, jax.typeof(x).to_tangent_aval().dtype)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def _filled(tangents, primals):
    """Tangents with zeros where there are None."""
    zeros = lambda x, d: jnp.zeros_like(x) if d is None and x is not None else d  # noqa: E731
    return jax.tree.map(zeros, primals, tangents, is_leaf=lambda x: x is None)


def _is_zero(tangents):
    return not jax.tree.leaves(tangents)


# residuals: (arrays, found); the linear argument is dx.
def _tangent(passes, residuals, dx):
    arrays, (out, lse, *_) = residuals
    return passes.tangent(passes.static, arrays, out, lse, dx)


def _tangent_derivative(passes, residuals, d_residuals, v):
    (arrays, found), (d_arrays, _) = residuals, d_residuals
    return linear(BEND, passes, (arrays, found, v), _filled(learned(d_arrays), learned(arrays)))


TANGENT = Map(
    apply=_tangent,
    transpose=lambda passes, residuals, cotangents: gradients(passes, *residuals, cotangents),
    derivative=_tangent_derivative,
    types=lambda residuals, dx: tuple(residuals[1][:2]),
)


# residuals: (arrays, found, cotangents); the linear argument is (dx, d_cotangents).
def _curvature(passes, residuals, tangents):
    (arrays, (out, lse, *_), cotangents), (dx, d_cotangents) = residuals, tangents

    def backward(x, out, lse, cotangents):
        return passes.plain(passes.static, _replaced(arrays, x), out, lse, *cotangents)

    d_found = passes.tangent(passes.static, arrays, out, lse, dx)
    return jax.jvp(backward, (learned(arrays), out, lse, cotangents), (dx, *d_found, d_cotangents))[1]


def _curvature_transpose(passes, residuals, v):
    arrays, found, cotangents = residuals
    along = linear(CURVATURE, passes, residuals, (v, _zeros(cotangents)))
    return along, linear(TANGENT, passes, (arrays, found), v)


def _curvature_derivative(passes, residuals, d_residuals, tangents):
    (arrays, _, cotangents), (d_arrays, _, d_cotangents) = residuals, d_residuals
    formula = _formula(passes, arrays)

    def gradients(x, cotangents):
        (_, lse), pull = jax.vjp(formula, x)
        d_out, d_lse = cotangents
        return pull((d_out, jnp.zeros_like(lse) if d_lse is None else d_lse))[0]

    def curvature(*at):
        return jax.jvp(gradients, at, tangents)[1]

    at = learned(arrays), cotangents
    return jax.jvp(curvature, at, (_filled(learned(d_arrays), at[0]), _filled(d_cotangents, cotangents)))[1]


CURVATURE = Map(
    apply=_curvature,
    transpose=_curvature_transpose,
    derivative=_curvature_derivative,
    types=lambda residuals, tangents: tangents[0],
)


# residuals: (arrays, found, v); the linear argument is dx.
def _bend(passes, residuals, dx):
    arrays, (out, lse, *_), v = residuals

    def tangent(x, out, lse):
        return passes.tangent(passes.static, _replaced(arrays, x), out, lse, v)

    d_found = passes.tangent(passes.static, arrays, out, lse, dx)
    return jax.jvp(tangent, (learned(arrays), out, lse), (dx, *d_found))[1]


def _bend_transpose(passes, residuals, cotangents):
    arrays, found, v = residuals
    return linear(CURVATURE, passes, (arrays, found, cotangents), (v, _zeros(cotangents)))


def _bend_derivative(passes, residuals, d_residuals, dx):
    (arrays, found, v), (d_arrays, _, d_v) = residuals, d_residuals
    by_v = linear(BEND, passes, (arrays, found, dx), _filled(d_v, v))
    if _is_zero(learned(d_arrays)):
        return by_v
    formula = _formula(passes, arrays)

    def bend(x):
        return jax.jvp(lambda x: jax.jvp(formula, (x,), (v,))[1], (x,), (dx,))[1]

    x = learned(arrays)
    d_out, d_lse = jax.jvp(bend, (x,), (_filled(learned(d_arrays), x),))[1]
    return jax.tree.map(jnp.add, by_v, (d_out, None if by_v[1] is None else d_lse))


BEND = Map(apply=_bend, transpose=_bend_transpose, derivative=_bend_derivative, types=TANGENT.types)


def _formula(passes, arrays):
    """Of the learned arrays."""
    return lambda x: passes.formula(passes.static, _replaced(arrays, x))
