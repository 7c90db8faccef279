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

from kernels import target
from kernels.attention import derivatives, partition, reference, xla
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

    Where there is nothing to compute it is the formula. Raises NotImplementedError, with the reason, if the one named
    can't do it.
    """
    if name is None:
        name = "reference" if target.wants_formulas() or symbolic(arrays) or empty(arrays) else fastest(request, arrays)
    elif reason := refusal(request, arrays, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    name = "reference" if empty(arrays) else name
    target.record("attention", name)
    if name == "reference":
        return _formula((name, request), arrays)
    return derivatives.attention(passes(name, request), arrays)[:2]


def empty(arrays: Arrays) -> bool:
    """Whether there are no examples, queries, keys, heads or features."""
    return any(n == 0 for n in (*arrays.query.shape, *arrays.key.shape))


def symbolic(arrays: Arrays) -> bool:
    """Whether a size is not known when the program is compiled."""
    return not all(isinstance(n, int) for n in (*arrays.query.shape, *arrays.key.shape))


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
    if symbolic(arrays):
        return "takes sizes that are known when the program is compiled; None and 'reference' take symbolic ones"
    platform, needed = target.device()[0], PLATFORMS[name]
    if needed not in (None, platform) and target.interpreter() is None:
        return f"runs on {needed}, and this is {platform}"
    if name == "cudnn" and not module(name).installed():
        return "is not installed here"
    return module(name).refuses(request, arrays)


def module(name: str) -> Any:
    """The module of an implementation."""
    return importlib.import_module(f"kernels.attention.{name}")  # Pallas takes a while to import


# The passes of an implementation; static is (name, request).
def _forward(static, arrays):
    name, request = static
    return partition.forward(name, functools.partial(module(name).forward, request), arrays)


def _backward(static, arrays, found, d_out, d_lse):
    name, request = static
    return partition.backward(name, functools.partial(module(name).backward, request), arrays, *found, d_out, d_lse)


def _tangent(static, arrays, out, lse, d_learned):
    _, request = static
    known = _log_sum_exp(static, arrays) if lse is None else lse
    d_out, d_lse = partition.tangent(functools.partial(xla.tangent, request), arrays, out, known, d_learned)
    return d_out, None if lse is None else d_lse


def _plain(static, arrays, out, lse, d_out, d_lse):
    _, request = static
    lse = _log_sum_exp(static, arrays) if lse is None else lse
    d_lse = jnp.zeros_like(lse) if d_lse is None else d_lse
    return partition.backward(None, functools.partial(xla.backward, request), arrays, out, lse, d_out, d_lse)


def _log_sum_exp(static, arrays):
    """For an implementation that gives none."""
    _, request = static
    return partition.forward(None, functools.partial(xla.forward, request), arrays)[1]


def _formula(static, arrays):
    _, request = static
    return partition.forward(None, functools.partial(reference.attention, request), arrays)


def passes(name: str, request: Request) -> derivatives.Passes:
    """Of an implementation: its own forward and backward pass, and by tiles in plain JAX what its derivatives need."""
    return derivatives.Passes((name, request), _forward, _backward, _tangent, _plain, _formula)
