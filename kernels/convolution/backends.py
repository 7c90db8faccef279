"""Which implementation of convolution runs where."""

import functools
import importlib
import json
import math
from importlib import resources
from typing import Any

import jax

from kernels import target
from kernels.convolution.windows import Geometry, Pair
from kernels.meshes import automatic

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
BY_HAND = "is divided over a mesh within jax.shard_map, or by explicit axes, not by those that are Auto"


def choose(geometry: Geometry, x: jax.Array, w: jax.Array, name: str | None) -> str:
    """The implementation of this name, None for the fastest that can do it.

    Raises NotImplementedError, with the reason, if the one named can't.
    """
    if 0 in (*x.shape, *w.shape):
        name = "lax"  # the others divide by the number of images or of channels
    elif name is None and target.wants_formulas():
        name = "reference"
    elif name is None:
        name = next(name for name in (*_order(geometry, x, w), "lax") if not refusal(geometry, x, w, name))
    elif reason := refusal(geometry, x, w, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    target.record("convolution", name)
    return name


def _order(geometry, x, w):
    """The fastest first, where the measurement comes nearest to what is asked: by kind, then by size and channels."""
    platform = target.device()[0]
    rows = measured(platform)
    if not rows:
        return UNMEASURED.get(platform, ())

    def distance(row):
        layer = row["layer"]
        kind = (w.shape[0], geometry.strides[0], geometry.dilation[0], geometry.groups > 1)
        same = kind == (layer["kernel"], layer["strides"], layer["dilation"], layer["groups"] > 1)
        sizes = zip((x.shape[1], x.shape[3], w.shape[3]), ("size", "channels", "features"), strict=True)
        return 100 * (not same) + sum(abs(math.log2(n / layer[name])) for n, name in sizes)

    seconds = min(rows, key=distance)["seconds"]
    return sorted((name for name in seconds if name in NAMES), key=seconds.__getitem__)


@functools.cache
def measured(platform: str, field: str = "kernel") -> list[dict]:
    """The single calls in kernels/results/convolution_<platform>.json of what has this field: a convolution its kernel,
    a pooling its window; none if there is no such file."""
    path = resources.files("kernels") / "results" / f"convolution_{platform}.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return [row for row in rows if row["mode"] == "call" and field in row["layer"]]


def refusal(geometry: Geometry, x: jax.Array, w: jax.Array, name: str) -> str | None:
    """Why an implementation can't do what is asked on the machine at hand, None if it can."""
    platform, needed = target.device()[0], PLATFORMS.get(name)
    if needed not in (None, platform) and target.interpreter() is None:
        return f"runs on {needed}, and this is {platform}"
    if name == "tpu" and automatic():
        return BY_HAND
    return module(name).refuses(geometry, x, w)


def module(name: str) -> Any:
    """The module of an implementation."""
    return importlib.import_module(f"kernels.convolution.{name}")  # Pallas takes a while to import


def vectorizes(name: str, kernel: Pair) -> bool:
    """Whether it takes batched weights by `jax.vmap`: as one product of batches of matrices, for kernels of one tap."""
    return name == "xla" and kernel == (1, 1)
