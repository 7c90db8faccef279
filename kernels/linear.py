"""Linear maps with a transpose and a derivative of their own, as one JAX primitive.

Forward mode runs the map and reverse mode the transpose, each as it is written. `jax.custom_vjp` has no forward mode,
`jax.custom_jvp` no transpose; JAX's `linear_call` has no batching rule and no derivative with respect to residuals.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels.meshes import varying


class Map(NamedTuple):
    """L(r) t, linear in the arrays of the tree t, for residuals r. The functions are defined in a module.

    Fields:
      apply: (static, r, t) -> L(r) t.
      transpose: (static, r, c) -> L(r)' c, a tree like t.
      derivative: (static, r, dr, t) -> the derivative of L(r) t with respect to r, along dr. dr has None for integers
        and where a tangent is known to be zero.
      types: (r, t) -> arrays of r and t that have the shapes and dtypes of L(r) t, in a tree like it.
    """

    apply: Callable
    transpose: Callable
    derivative: Callable
    types: Callable


def linear(function: Map, static: Hashable, residuals: Any, tangents: Any) -> Any:
    """`function.apply(static, residuals, tangents)`, with the transpose and the derivative of the Map.

    Args:
      function: the Map.
      static: what its functions know when the program is compiled.
      residuals: a tree of arrays.
      tangents: a tree of floating-point arrays.

    Returns:
      What `function.apply` returns.

    Example:
      >>> scale = Map(
      ...     apply=lambda static, r, t: r * t,
      ...     transpose=lambda static, r, c: r * c,
      ...     derivative=lambda static, r, dr, t: dr * t,
      ...     types=lambda r, t: t,
      ... )
      >>> f = lambda r, t: linear(scale, None, r, t)
      >>> jax.jvp(f, (3.0, 2.0), (1.0, 10.0)), jax.grad(f, 1)(3.0, 2.0)
      ((Array(6., dtype=float32...), Array(32., dtype=float32...)), Array(3., dtype=float32...))
    """
    (flat, r_tree), (flat_t, t_tree) = jax.tree.flatten(residuals), jax.tree.flatten(tangents)
    trees = r_tree, t_tree
    # levels: of each `vmap` around this, the outermost first, the axes of the residuals. Tangents and results have 0.
    found = linear_p.bind(*varying((*flat, *flat_t)), function=function, static=static, levels=(), trees=trees)
    return jax.tree.unflatten(_results(function, trees), found)


def _results(function, trees):
    """The structure of what the map returns."""
    numbered = (jax.tree.unflatten(tree, range(tree.num_leaves)) for tree in trees)
    return jax.tree.structure(function.types(*numbered))


def _split(flat, trees):
    """The leaves of residuals and tangents."""
    count = trees[0].num_leaves
    return list(flat[:count]), list(flat[count:])


def _mapped(function, levels, *kinds):
    """`function` of lists of leaves under the levels' vmaps, its results a flat list.

    kinds: of each argument, whether it has the axes of the residuals; else 0.
    """
    for axes in reversed(levels):
        function = jax.vmap(function, in_axes=tuple(list(axes) if of_residuals else 0 for of_residuals in kinds))
    return function


def _apply(*flat, function, static, levels, trees):
    def one(residuals, tangents):
        return jax.tree.leaves(function.apply(static, trees[0].unflatten(residuals), trees[1].unflatten(tangents)))

    return _mapped(one, levels, True, False)(*_split(flat, trees))


def _types(*avals, function, static, levels, trees):
    def one(residuals, tangents):
        return jax.tree.leaves(function.types(trees[0].unflatten(residuals), trees[1].unflatten(tangents)))

    return jax.make_jaxpr(_mapped(one, levels, True, False))(*_split(avals, trees)).out_avals


def _transpose(cotangents, *flat, function, static, levels, trees):
    def one(residuals, cotangents):
        cotangents = _results(function, trees).unflatten(cotangents)
        return jax.tree.leaves(function.transpose(static, trees[0].unflatten(residuals), cotangents))

    residuals, tangents = _split(flat, trees)
    found = _mapped(one, levels, True, False)(residuals, [ad.instantiate_zeros(x) for x in cotangents])
    # Tangents that are known, which are zeros, have no cotangent.
    wanted = [x if ad.is_undefined_primal(t) else None for x, t in zip(found, tangents, strict=True)]
    return [None] * len(residuals) + wanted


def _jvp(primals, d_primals, *, function, static, levels, trees):
    def one(residuals, d_residuals, tangents):
        residuals, d_residuals = (trees[0].unflatten(x) for x in (residuals, d_residuals))
        return jax.tree.leaves(function.derivative(static, residuals, d_residuals, trees[1].unflatten(tangents)))

    def bind(*flat):
        return linear_p.bind(*flat, function=function, static=static, levels=levels, trees=trees)

    residuals, tangents = _split(primals, trees)
    d_residuals, d_tangents = _split(d_primals, trees)
    found, sums = bind(*primals), []
    if any(type(d) is not ad.Zero for d in d_tangents):
        sums.append(bind(*residuals, *(ad.instantiate_zeros(d) for d in d_tangents)))
    d_residuals = [None if type(d) is ad.Zero or jax.typeof(d).dtype == jax.dtypes.float0 else d for d in d_residuals]
    if any(d is not None for d in d_residuals):
        sums.append(_mapped(one, levels, True, True, False)(residuals, d_residuals, tangents))
    if not sums:
        return found, [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in found]
    return found, [sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True)]


def _batch(flat, axes, *, function, static, levels, trees):
    size = next(x.shape[axis] for x, axis in zip(flat, axes, strict=True) if axis is not None)
    (residuals, tangents), (r_axes, t_axes) = _split(flat, trees), _split(axes, trees)
    tangents = [
        jnp.broadcast_to(t, (size, *t.shape)) if axis is None else jnp.moveaxis(t, axis, 0)
        for t, axis in zip(tangents, t_axes, strict=True)
    ]
    levels = (tuple(r_axes), *levels)
    found = linear_p.bind(*residuals, *tangents, function=function, static=static, levels=levels, trees=trees)
    return found, [0] * len(found)


linear_p = Primitive("linear")
linear_p.multiple_results = True
linear_p.def_impl(jax.jit(_apply, static_argnames=("function", "static", "levels", "trees")))
linear_p.def_abstract_eval(_types)
mlir.register_lowering(linear_p, mlir.lower_fun(_apply, multiple_results=True))
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
