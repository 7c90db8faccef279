"""A convolution and what follows it, as one: by kernels that have an epilogue, or in two steps that XLA may fuse."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from kernels.convolution import backends, bilinear, partition
from kernels.convolution.epilogue import SLOPES, Epilogue
from kernels.convolution.windows import Geometry, Pair, wide
from kernels.meshes import varying

ROUNDING = ("reference", "xla")  # give sums of the dtype that they get: float32, so that these are not rounded


def convolution(name: str, geometry: Geometry, x: jax.Array, w: jax.Array, follow: Epilogue) -> jax.Array:
    """follow(x * w), of x's dtype, by the implementation of this name."""
    if name in backends.FUSED and any(part is not None for part in follow):
        return _fused(name, geometry, follow.activation, x, w, follow[:4])
    sums = bilinear.forward(name, geometry, *_wide(name, x, w))
    return follow(sums).astype(x.dtype)


def transposed(name: str, geometry: Geometry, x: jax.Array, w: jax.Array, size: Pair, follow: Epilogue) -> jax.Array:
    """follow(the transpose of * w, applied to x), (N, *size, C), of x's dtype."""
    sums = bilinear.input_gradient(name, geometry, *_wide(name, x, w), size)
    return follow(sums).astype(x.dtype)


def _wide(name, *operands):
    if name not in ROUNDING:
        return operands
    return tuple(a.astype(wide(a.dtype)) for a in operands)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _fused(name, geometry, activation, x, w, arrays):
    """By the kernel with an epilogue, of which arrays are bias, scale, shift and residual."""

    @custom_vmap
    def run(x, w, arrays):
        whole = backends.module(name).forward
        function = lambda x, w, *arrays: whole(geometry, x, w, Epilogue(*arrays, activation))  # noqa: E731
        rule = "n h w c, i j e k, k, k, k, n p q k -> n p q k"
        return partition.call(name, function, rule if geometry.groups == 1 else rule.replace("k", "m"), x, w, *arrays)

    @run.def_vmap
    def one_after_the_other(_, batched, *operands):
        leaves, tree = jax.tree.flatten(operands)
        mapped = jax.tree.leaves(batched)
        some = [a for a, is_mapped in zip(leaves, mapped, strict=True) if is_mapped]

        def one(some):
            some = iter(some)
            each = [next(some) if is_mapped else a for a, is_mapped in zip(leaves, mapped, strict=True)]
            return run(*jax.tree.unflatten(tree, each))

        return lax.map(one, some), True

    return run(*varying((x, w, tuple(arrays))))


@functools.partial(_fused.defjvp, symbolic_zeros=True)
def _fused_jvp(name, geometry, activation, primals, tangents):
    """The derivative of the activation is a function of its value where there is such a one, else of the sums."""
    x, w, arrays = primals
    y = _fused(name, geometry, activation, *primals)
    is_zero = lambda t: t is None or isinstance(t, SymbolicZero)  # noqa: E731
    forward = functools.partial(bilinear.forward, name, geometry)
    dx, dw, d_arrays = tangents
    d_sums = [] if is_zero(dx) else [forward(dx, w)]
    d_sums += [] if is_zero(dw) else [forward(x, dw)]
    if arrays[1] is None and activation in SLOPES:  # no scale
        rows = [t if t.ndim == 4 else t[None, None, None] for t in d_arrays if not is_zero(t)]
        dz = sum((t.astype(jnp.float32) for t in (*d_sums, *rows)), jnp.zeros(y.shape, jnp.float32))
        return y, (SLOPES[activation](y.astype(jnp.float32)) * dz).astype(y.dtype)
    zeros = lambda a, t: None if a is None else jnp.zeros_like(a) if is_zero(t) else t  # noqa: E731
    given = [a for a in arrays if a is not None]
    d_given = [zeros(a, t) for a, t in zip(arrays, d_arrays, strict=True) if a is not None]

    def after(sums, *given):
        given = iter(given)
        return Epilogue(*(None if a is None else next(given) for a in arrays), activation)(sums).astype(y.dtype)

    sums = forward(x, w)
    _, dy = jax.jvp(after, (sums, *given), (sum(d_sums) if d_sums else jnp.zeros_like(sums), *d_given))
    return y, dy
