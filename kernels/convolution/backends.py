"""Which implementation of convolution runs where."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from kernels import target
from kernels.convolution.windows import Geometry, Pair

# Each is a module with four functions:
#   refuses(geometry, x, w) -> str | None                why it can't do what is asked, if it can't
#   forward(geometry, x, w) -> y                         (N, H', W', K) of x's dtype
#   input_gradient(geometry, dy, w, size) -> dx          (N, *size, C) of dy's dtype
#   weight_gradient(geometry, x, dy, kernel) -> dw       (*kernel, C / groups, K) of x's dtype
# and those in FUSED have forward(geometry, x, w, follow), with an Epilogue, too.
PLATFORMS = {"xla": None, "lax": None, "tpu": "tpu", "hopper": "cuda"}
FUSED = ("tpu", "hopper")
NAMES = ("reference", *PLATFORMS)
# Where nothing was measured: the fast forms for a CPU, and elsewhere the vendor's convolution.
UNMEASURED = {"cpu": ("xla",)}


def choose(geometry: Geometry, x: jax.Array, w: jax.Array, name: str | None) -> str:
    """The implementation of this name, None for the fastest that can do it.

    Raises NotImplementedError, with the reason, if the one named can't.
    """
    if name is None:
        return next(name for name in (*_order(), "lax") if not refusal(geometry, x, w, name))
    if reason := refusal(geometry, x, w, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    return name


def _order():
    return UNMEASURED.get(target.device()[0], ("lax",))


def refusal(geometry: Geometry, x: jax.Array, w: jax.Array, name: str) -> str | None:
    """Why an implementation can't do what is asked on the machine at hand, None if it can."""
    platform, needed = target.device()[0], PLATFORMS.get(name)
    if needed not in (None, platform) and target.interpreter() is None:
        return f"runs on {needed}, and this is {platform}"
    if x.dtype == jnp.float64 and needed:
        return "has no float64"
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    if name == "tpu" and any(size > 1 and kind == AxisType.Auto for size, kind in kinds):
        return "is divided over a mesh within jax.shard_map, or by explicit axes, not by those that are Auto"
    return module(name).refuses(geometry, x, w)


def module(name: str) -> Any:
    """The module of an implementation."""
    return importlib.import_module(f"kernels.convolution.{name}")  # Pallas takes a while to import


def vectorizes(name: str, geometry: Geometry, kernel: Pair) -> bool:
    """Whether it takes batched weights by `jax.vmap`: elementwise, or as one product of batches of matrices."""
    return name == "xla" and (geometry.groups > 1 or kernel == (1, 1))
