"""Which implementation of pooling runs where, and the derivatives of those that are kernels."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from kernels import target
from kernels.convolution.backends import BY_HAND, measured
from kernels.convolution.windows import Geometry, Pair
from kernels.meshes import automatic, varying
from kernels.pooling import xla

# Each is a module with
#   max_pool(x, window, geometry) -> y                  (N, H', W', C)
#   sum_pool(x, window, geometry, scale) -> y           scale times the sum, of float32
# which JAX differentiates; a kernel also says what it refuses, and has the gradients:
#   refuses(x, window, geometry) -> str | None
#   max_pool_gradient(x, y, dy, window, geometry) -> dx
#   sum_pool_gradient(dy, size, window, geometry, scale) -> dx
KERNELS = {"tpu": "tpu", "hopper": "cuda"}
NAMES = ("reference", "xla", *KERNELS)


def choose(x: jax.Array, window: Pair, geometry: Geometry, name: str | None, kind: str) -> str:
    """The implementation of this name; of None the fastest that can do it, where nothing was measured `xla`.

    kind: "max" or "average", as which sums are measured.

    Raises NotImplementedError, with the reason, if the one named can't do it.
    """
    if name is None:
        order = _order(x, window, geometry, kind)
        name = next(name for name in (*order, "xla") if not refusal(x, window, geometry, name))
    elif reason := refusal(x, window, geometry, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    target.record("pooling", name)
    return name


def refusal(x: jax.Array, window: Pair, geometry: Geometry, name: str) -> str | None:
    """Why an implementation can't do what is asked on the machine at hand, None if it can."""
    if name not in KERNELS:
        return None
    platform = target.device()[0]
    if platform != KERNELS[name] and target.interpreter() is None:
        return f"runs on {KERNELS[name]}, and this is {platform}"
    return BY_HAND if automatic() else module(name).refuses(x, window, geometry)


def _order(x, window, geometry, kind):
    """The fastest first, where the measurement comes nearest to what is asked: by kind, window, size and channels."""

    def distance(row):
        layer = row["layer"]
        same = (kind, window, geometry.strides) == (layer["kind"], (layer["window"],) * 2, (layer["strides"],) * 2)
        sizes = zip(x.shape[2:], (layer["size"], layer["channels"]), strict=True)
        return 100 * (not same) + sum(abs(math.log2(max(n, 1) / m)) for n, m in sizes)

    rows = measured(target.device()[0], "window")
    seconds = min(rows, key=distance)["seconds"] if rows else {}
    return sorted((name for name in seconds if name in NAMES), key=seconds.__getitem__)


def max_pool(name: str, x: jax.Array, window: Pair, geometry: Geometry) -> jax.Array:
    return _max(name, x, window, geometry) if name in KERNELS else module(name).max_pool(x, window, geometry)


def sum_pool(name: str, x: jax.Array, window: Pair, geometry: Geometry, scale: float) -> jax.Array:
    if name in KERNELS:
        return _sum(name, x.shape[1:3], window, geometry, scale, x)
    return module(name).sum_pool(x, window, geometry, scale)


def module(name: str) -> Any:
    """The module of an implementation."""
    return importlib.import_module(f"kernels.pooling.{name}")  # Pallas takes a while to import


def _call(function: Callable, *arrays: jax.Array) -> jax.Array:
    """A kernel's function of images (N, ...); under `jax.vmap` of more images."""
    run = custom_vmap(function)

    @run.def_vmap
    def of_more_images(size, batched, *arrays):
        whole = (
            a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
            for a, is_batched in zip(arrays, batched, strict=True)
        )
        y = run(*(a.reshape(-1, *a.shape[2:]) for a in whole))
        return y.reshape(size, -1, *y.shape[1:]), True

    return run(*varying(arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2, 3))
def _max(name, x, window, geometry):
    return _call(lambda x: module(name).max_pool(x, window, geometry), x)


def _max_forward(name, x, window, geometry):
    y = _max(name, x, window, geometry)
    return y, (x, y)


def _max_backward(name, window, geometry, kept, dy):
    return (_max_gradient(name, window, geometry, *kept, dy),)


_max.defvjp(_max_forward, _max_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_gradient(name, window, geometry, x, y, dy):
    return _call(lambda *arrays: module(name).max_pool_gradient(*arrays, window, geometry), x, y, dy)


def _max_gradient_forward(name, window, geometry, x, y, dy):
    return _max_gradient(name, window, geometry, x, y, dy), (x, y)


def _max_gradient_backward(name, window, geometry, kept, ddx):
    """It is linear in dy alone, and its transpose takes ddx at every window's maximum."""
    x, y = kept
    at_maxima = jax.jvp(lambda x: xla.max_pool(x, window, geometry), (x,), (ddx,))[1]
    return jnp.zeros_like(x), jnp.zeros_like(y), at_maxima


_max_gradient.defvjp(_max_gradient_forward, _max_gradient_backward)


# Two linear functions, each the other's transpose.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def _sum(name, size, window, geometry, scale, x):
    return _call(lambda x: module(name).sum_pool(x, window, geometry, scale), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def _spread(name, size, window, geometry, scale, dy):
    return _call(lambda dy: module(name).sum_pool_gradient(dy, size, window, geometry, scale), dy)


_sum.defvjp(lambda *given: (_sum(*given), None), lambda *given: (_spread(*given[:5], given[6]),))
_spread.defvjp(lambda *given: (_spread(*given), None), lambda *given: (_sum(*given[:5], given[6]),))
