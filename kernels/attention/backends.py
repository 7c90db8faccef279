"""Which implementation of attention runs where, and the derivatives of all of them."""

import functools
import importlib
import json
import math
from collections.abc import Iterable
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels import target
from kernels.attention import partition, reference
from kernels.attention.request import Arrays, Request

# Each is a module with three functions:
#   refuses(request, arrays) -> str | None       why it can't do what is asked, if it can't
#   forward(request, arrays) -> (out, lse, ...)  (B, T, N, D) of query's dtype, (B, N, T) of `request.wide`, and more
#   backward(request, arrays, out, lse, ..., d_out, d_lse) -> gradients of query, key, value, bias (None without one)
# lse and d_lse are None where it is not asked for and the implementation gives none.
PLATFORMS = {"xla": None, "tpu": "tpu", "hopper": "cuda", "cudnn": "cuda"}
NAMES = ("reference", *PLATFORMS)
# Where nothing was measured: what is known to be good, and then what does everything.
UNMEASURED = {"cpu": ("xla",), "cuda": ("cudnn", "xla"), "tpu": ("tpu", "xla")}


def attention(request: Request, arrays: Arrays, name: str | None) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T) by the implementation of this name, None for the fastest.

    Raises NotImplementedError, with the reason, if the one named can't do it.
    """
    if name is None:
        name = "reference" if target.wants_formulas() else fastest(request, arrays)
    elif reason := refusal(request, arrays, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    target.record("attention", name)
    return reference.attention(request, arrays) if name == "reference" else _attention(name, request, arrays)[:2]


def fastest(request: Request, arrays: Arrays, among: Iterable[str] = NAMES) -> str:
    """The implementation that can do it and took the least time where the measurement comes nearest to what is asked.

    Nearest by features, then by the logarithms of length and depth; by `python -m kernels.bench attention --save`.
    """
    platform = target.device()[0]
    if rows := measured(platform):
        seconds = min(rows, key=lambda row: _distance(row, request, arrays))["seconds"]
        order = sorted((name for name in seconds if name in NAMES), key=seconds.__getitem__)
    else:
        order = UNMEASURED.get(platform, ("xla",))
    unknown = jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1
    if unknown:  # XLA may be about to divide this program, and could not divide a TPU's kernel
        order = [name for name in order if name != "tpu"]
    return next((name for name in order if name in among and not refusal(request, arrays, name)), "xla")


@functools.cache
def measured(platform: str) -> list[dict]:
    """The rows of kernels/results/attention_<platform>.json, none if there is no such file."""
    path = resources.files("kernels") / "results" / f"attention_{platform}.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def _distance(row: dict, request: Request, arrays: Arrays) -> float:
    length, depth = max(arrays.query.shape[1], arrays.key.shape[1]), arrays.query.shape[3]
    apart = len(features(request, arrays) ^ set(row["features"]))
    return 100 * apart + abs(math.log2(length / row["length"])) + abs(math.log2(depth / row["depth"]))


def features(request: Request, arrays: Arrays) -> set[str]:
    """What is asked for besides the plain thing, in the words of the measurements."""
    low, high = request.band
    asked = {
        "causal": high == 0,
        "window": low is not None or high not in (None, 0),
        "lengths": arrays.mask.query_lengths is not None or arrays.mask.key_lengths is not None,
        "segments": arrays.mask.query_segments is not None,
        "mask": arrays.mask.dense is not None,
        "bias": arrays.bias is not None,
        "soft cap": request.soft_cap is not None,
        "dropout": request.dropout_rate > 0,
    }
    return {name for name, holds in asked.items() if holds}


def refusal(request: Request, arrays: Arrays, name: str) -> str | None:
    """Why an implementation can't do what is asked on the machine at hand, None if it can."""
    if name == "reference":
        return None
    platform, needed = target.device()[0], PLATFORMS[name]
    if needed not in (None, platform) and target.interpreter() is None:
        return f"runs on {needed}, and this is {platform}"
    if name == "cudnn" and not module(name).installed():
        return "is not installed here"
    return module(name).refuses(request, arrays)


def module(name: str) -> Any:
    """The module of an implementation."""
    return importlib.import_module(f"kernels.attention.{name}")  # Pallas takes a while to import


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(name, request: Request, arrays: Arrays):
    return partition.forward(name, functools.partial(module(name).forward, request), arrays)


def _attention_forward(name, request, arrays):
    found = _attention(name, request, arrays)  # itself, which has a derivative, and not the kernel, which has none
    return found, (arrays, found)


def _attention_backward(name, request, residuals, cotangents):
    arrays, found = residuals
    gradients = _gradients(name, request, arrays, found, *cotangents[:2])
    return (Arrays(*gradients, *jax.tree.map(_no_gradient, arrays[4:])),)


def _no_gradient(x):
    return np.zeros(x.shape, jax.dtypes.float0)


def _zero(x):
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.inexact) else _no_gradient(x)


_attention.defvjp(_attention_forward, _attention_backward)


# The gradients are a function with a derivative of its own, that of the reference's gradients: second derivatives need
# the memory of all scores.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(name, request, arrays, found, d_out, d_lse):
    return partition.backward(name, functools.partial(module(name).backward, request), arrays, *found, d_out, d_lse)


def _gradients_forward(name, request, arrays, found, d_out, d_lse):
    return _gradients(name, request, arrays, found, d_out, d_lse), (arrays, found, d_out, d_lse)


def _gradients_backward(name, request, residuals, cotangents):
    arrays, found, *seeds = residuals

    def of_reference(inputs, d_out, d_lse):
        (_, lse), pull = jax.vjp(lambda inputs: reference.attention(request, arrays._replace(**inputs)), inputs)
        gradients = pull((d_out, jnp.zeros_like(lse) if d_lse is None else d_lse))[0]
        return tuple(gradients.get(name) for name in ("query", "key", "value", "bias"))

    inputs = {name: x for name, x in arrays._asdict().items() if name in ("query", "key", "value", "bias")}
    inputs = {name: x for name, x in inputs.items() if x is not None}
    _, pull = jax.vjp(of_reference, inputs, *seeds)
    d_inputs, d_out, d_lse = pull(cotangents)
    whole = arrays._replace(
        **{"bias": None, **d_inputs},
        **{name: jax.tree.map(_no_gradient, getattr(arrays, name)) for name in ("mask", "seeds", "heads")},
    )
    # What the results of the forward pass contribute is in the reference's gradients: they follow from the inputs.
    return whole, jax.tree.map(_zero, found), d_out, d_lse


_gradients.defvjp(_gradients_forward, _gradients_backward)
