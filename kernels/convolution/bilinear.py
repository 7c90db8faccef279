"""Convolution and its gradients as three bilinear primitives, for every implementation.

With the inner product <dy, x * w> of an output's cotangent and a convolution, a form linear in x, w and dy:

    y  = x * w                  forward(x, w)
    dx = d<dy, x * w> / dx      input_gradient(dy, w)
    dw = d<dy, x * w> / dw      weight_gradient(x, dy)

Each is linear in both operands, and its two derivatives are the other two: so derivatives of every order, forward and
reverse, stay among the three. They are primitives because of what JAX makes of a convolution's gradient and of a `vmap`
over its weights: layouts and groups that XLA computes slowly on every platform.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import dispatch
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kernels.convolution import backends, partition
from kernels.convolution.windows import Geometry, Pair
from kernels.fusion import apart
from kernels.meshes import varying


def forward(implementation: str, geometry: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
    """x (N, H, W, C), w (kh, kw, C / groups, K) -> y (N, H', W', K)."""
    return forward_p.bind(*varying((x, w)), implementation=implementation, geometry=geometry)


def input_gradient(implementation: str, geometry: Geometry, dy: jax.Array, w: jax.Array, size: Pair) -> jax.Array:
    """dy (N, H', W', K), w (kh, kw, C / groups, K) -> dx (N, *size, C)."""
    return input_gradient_p.bind(*varying((dy, w)), implementation=implementation, geometry=geometry, size=size)


def weight_gradient(implementation: str, geometry: Geometry, x: jax.Array, dy: jax.Array, kernel: Pair) -> jax.Array:
    """x (N, H, W, C), dy (N, H', W', K) -> dw (*kernel, C / groups, K)."""
    return weight_gradient_p.bind(*varying((x, dy)), implementation=implementation, geometry=geometry, kernel=kernel)


def _forward(x, w, *, implementation, geometry, devices=1):
    function = functools.partial(backends.module(implementation).forward, geometry)
    k = _k(geometry)
    return partition.call(implementation, function, f"n h w c, i j e {k} -> n p q {k}", x, w, devices=devices)


def _input_gradient(dy, w, *, implementation, geometry, size, devices=1):
    function = lambda dy, w: backends.module(implementation).input_gradient(geometry, dy, w, size)  # noqa: E731
    k = _k(geometry)
    return partition.call(implementation, function, f"n p q {k}, i j e {k} -> n h w c", dy, w, devices=devices)


def _weight_gradient(x, dy, *, implementation, geometry, kernel, devices=1):
    function = lambda x, dy: backends.module(implementation).weight_gradient(geometry, x, dy, kernel)  # noqa: E731
    k = _k(geometry)
    return partition.call(implementation, function, f"n h w c, n p q {k} -> i j e {k}", x, dy, devices=devices)


def _k(geometry):
    """The name of the output channels, by which `partition` divides them, or does not: in groups."""
    return "k" if geometry.groups == 1 else "m"


def _primitive(function, shape):
    primitive = Primitive(f"convolution{function.__name__}")
    static = [name for name in inspect.getfullargspec(function).kwonlyargs if name != "devices"]
    compiled = jax.jit(primitive.bind, static_argnames=static)

    def implementation(*operands, **static):
        with jax.disable_jit(False):  # where it is disabled, a primitive is still compiled, as JAX's own are
            return compiled(*operands, **static)

    primitive.def_impl(implementation)
    primitive.def_abstract_eval(
        lambda a, b, implementation, **static: a.update(shape=shape(a.shape, b.shape, **static))
    )
    dispatch.prim_requires_devices_during_lowering.add(primitive)  # as custom_partitioning does, which is within

    def lower(context, *operands, **static):
        devices = getattr(context.module_context.axis_context, "num_devices", 1)  # within jax.shard_map there is one
        divided = functools.partial(function, devices=devices)
        return mlir.lower_fun(divided, multiple_results=False)(context, *operands, **static)

    mlir.register_lowering(primitive, lower)
    return primitive


forward_p = _primitive(_forward, lambda x, w, geometry: (x[0], *geometry.output(x[1:3], w[:2]), w[3]))
input_gradient_p = _primitive(_input_gradient, lambda dy, w, geometry, size: (dy[0], *size, w[2] * geometry.groups))
weight_gradient_p = _primitive(
    _weight_gradient, lambda x, dy, geometry, kernel: (*kernel, x[3] // geometry.groups, dy[3])
)

# A transposition rule gets the result's cotangent, then the operands; the one asked for is known by its `aval` only.
ad.defbilinear(
    forward_p,
    lambda dy, x, w, **static: input_gradient_p.bind(dy, w, size=x.aval.shape[1:3], **static),
    lambda dy, x, w, **static: weight_gradient_p.bind(x, dy, kernel=w.aval.shape[:2], **static),
)
ad.defbilinear(
    input_gradient_p,
    lambda dx, dy, w, size, **static: forward_p.bind(dx, w, **static),
    lambda dx, dy, w, size, **static: weight_gradient_p.bind(dx, dy, kernel=w.aval.shape[:2], **static),
)
ad.defbilinear(
    weight_gradient_p,
    lambda dw, x, dy, kernel, **static: input_gradient_p.bind(dy, dw, size=x.aval.shape[1:3], **static),
    lambda dw, x, dy, kernel, **static: forward_p.bind(x, dw, **static),
)


def _batch(primitive, function, operands, axes, **static):
    """More images where only they are batched; else products of batches, or one convolution after the other."""
    first, second = (a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True))
    if primitive is not weight_gradient_p and axes[1] is None:
        y = primitive.bind(first.reshape(-1, *first.shape[2:]), second, **static)
        return y.reshape(*first.shape[:2], *y.shape[1:]), 0
    kernel = static.get("kernel", second.shape[-4:-2])
    inside = [None if axis is None else 0 for axis in axes]
    if backends.vectorizes(static["implementation"], kernel):
        return jax.vmap(functools.partial(function, **static), in_axes=inside)(first, second), 0
    bind = functools.partial(primitive.bind, **static)

    def one(mapped):
        return apart(bind, *(mapped.get(i, a) for i, a in enumerate((first, second))))  # from the stack of results

    return lax.map(one, {i: a for i, a in enumerate((first, second)) if axes[i] is not None}), 0


for _p, _f in ((forward_p, _forward), (input_gradient_p, _input_gradient), (weight_gradient_p, _weight_gradient)):
    batching.primitive_batchers[_p] = functools.partial(_batch, _p, _f)
