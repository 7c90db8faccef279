"""Which implementation of attention runs where, and the derivatives of all of them."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels import target
from kernels.attention import reference
from kernels.attention.request import Arrays, Request

# Each is a module with three functions:
#   refuses(request, arrays) -> str | None       why it can't do what is asked, if it can't
#   forward(request, arrays) -> (out, lse)       (B, T, N, D) of query's dtype and (B, N, T) of `request.wide`
#   backward(request, arrays, out, lse, d_out, d_lse) -> gradients of query, key, value and bias (None without one)
PLATFORMS = {"xla": None, "tpu": "tpu", "hopper": "cuda", "cudnn": "cuda"}
NAMES = ("reference", *PLATFORMS)
SHORT = 1024  # `python -m kernels.bench attention`: the tiles take 1.4 times as long at 512, 0.9 times at 1,024


def attention(request: Request, arrays: Arrays, name: str | None) -> tuple[jax.Array, jax.Array]:
    """The output (B, T, N, D) and the log-sum-exp (B, N, T) by the implementation of this name, None for the fastest.

    Raises NotImplementedError, with the reason, if the one named can't do it.
    """
    if name is None:
        name = "reference" if max(arrays.query.shape[1], arrays.key.shape[1]) < SHORT else "xla"
    elif reason := refusal(request, arrays, name):
        raise NotImplementedError(f"implementation={name!r} {reason}")
    return reference.attention(request, arrays) if name == "reference" else _attention(name, request, arrays)


def refusal(request: Request, arrays: Arrays, name: str) -> str | None:
    """Why an implementation can't do what is asked on the machine at hand, None if it can."""
    if name == "reference":
        return None
    platform, needed = target.device()[0], PLATFORMS[name]
    if needed not in (None, platform) and target.interpreter() is None:
        return f"runs on {needed}, and this is {platform}"
    return _module(name).refuses(request, arrays)


def _module(name: str) -> Any:
    return importlib.import_module(f"kernels.attention.{name}")  # Pallas takes a while to import


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(name, request: Request, arrays: Arrays):
    return _module(name).forward(request, arrays)


def _attention_forward(name, request, arrays):
    out, lse = _attention(name, request, arrays)  # itself, which has a derivative, and not the loops, which have none
    return (out, lse), (arrays, out, lse)


def _attention_backward(name, request, residuals, cotangents):
    arrays, out, lse = residuals
    found = _gradients(name, request, arrays, out, lse, *cotangents)
    return (Arrays(*found, *jax.tree.map(_no_gradient, (arrays.mask, arrays.seeds))),)


def _no_gradient(x):
    return np.zeros(x.shape, jax.dtypes.float0)


_attention.defvjp(_attention_forward, _attention_backward)


# The gradients are a function with a derivative of its own, that of the reference's gradients: second derivatives need
# the memory of all scores.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(name, request, arrays, out, lse, d_out, d_lse):
    return _module(name).backward(request, arrays, out, lse, d_out, d_lse)


def _gradients_forward(name, request, arrays, out, lse, d_out, d_lse):
    return _gradients(name, request, arrays, out, lse, d_out, d_lse), (arrays, out, lse, d_out, d_lse)


def _gradients_backward(name, request, residuals, cotangents):
    arrays, out, lse, *seeds = residuals

    def of_reference(inputs, d_out, d_lse):
        _, pull = jax.vjp(lambda inputs: reference.attention(request, arrays._replace(**inputs)), inputs)
        found = pull((d_out, d_lse))[0]
        return tuple(found.get(name) for name in ("query", "key", "value", "bias"))

    inputs = {name: x for name, x in arrays._asdict().items() if name in ("query", "key", "value", "bias")}
    inputs = {name: x for name, x in inputs.items() if x is not None}
    _, pull = jax.vjp(of_reference, inputs, *seeds)
    d_inputs, d_out, d_lse = pull(cotangents)
    whole = arrays._replace(
        **{"bias": None, **d_inputs},
        mask=jax.tree.map(_no_gradient, arrays.mask),
        seeds=jax.tree.map(_no_gradient, arrays.seeds),
    )
    # What the output and the log-sum-exp contribute is in the reference's gradients: they follow from the inputs.
    return whole, jnp.zeros_like(out), jnp.zeros_like(lse), d_out, d_lse


_gradients.defvjp(_gradients_forward, _gradients_backward)
