"""A small problem on which optimizers are compared with transcriptions of their papers, in float64.

Its parameters are a matrix, a bias, an embedding, a recurrent kernel and three layers in one array. A reference sees
the three as arrays of their own, "layer_0" to "layer_2".
"""

from collections.abc import Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deeplearn import optimizers
from deeplearn.roles import Role, lookup

STEPS, DEPTH = 50, 3
Params = dict[str, np.ndarray]
NONE = MappingProxyType({})
SHAPES = {"bias": (5,), "embedding": (6, 4), "kernel": (4, 5), "layers": (DEPTH, 4, 3), "recurrent": (4, 4)}
MATRIX = Role("kernel", (0,), (1,))
ROLES = {
    "bias": Role("vector", (), (0,)),
    "embedding": Role("embedding", (0,), (1,)),
    "kernel": MATRIX,
    "layers": Role("kernel", (1,), (2,), (0,)),
    "recurrent": MATRIX,
}


def arrays(seed: int, *lead: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(*lead, *shape)) for name, shape in SHAPES.items()}


START, CENTRES, NOISE = arrays(0), arrays(1), arrays(2, STEPS)


def loss(params, t):
    """At least 1; of many curvatures, coupled, not convex, and noisy: each step has a linear term of its own.

    Computed in float32 at least: parameters of lower precision are rounded, not their loss.
    """
    dtype = params["bias"].dtype if params["bias"].dtype.itemsize >= 4 else jnp.float32
    params = {name: w.astype(dtype) for name, w in params.items()}
    value = 1.0 + jnp.square(0.1 * sum(jnp.sum(w) for w in params.values()))
    for name, w in params.items():
        scale = jnp.linspace(0.1, 3.0, w.size, dtype=dtype).reshape(w.shape)
        away = w - jnp.asarray(CENTRES[name], dtype)
        value += jnp.sum(0.5 * scale * jnp.square(away) + 0.3 * jnp.square(jnp.sin(2.0 * w)))
        value += 0.5 * jnp.sum(jnp.asarray(NOISE[name], dtype)[t] * away)
    return value


def split(params: dict[str, Any]) -> Params:
    """As a reference sees them, in float64."""
    result = {name: np.asarray(w, np.float64) for name, w in params.items()}
    layers = result.pop("layers")
    return result | {f"layer_{i}": layer for i, layer in enumerate(layers)}


def joined(params: Params) -> dict[str, Any]:
    rest = {name: w for name, w in params.items() if not name.startswith("layer_")}
    return rest | {"layers": np.stack([params[f"layer_{i}"] for i in range(DEPTH)])}


def flat(params: Params) -> np.ndarray:
    """All numbers in one vector."""
    return np.concatenate([w.ravel() for w in params.values()])


def shaped(vector: np.ndarray, like: Params) -> Params:
    ends = np.cumsum([w.size for w in like.values()])
    parts = np.split(vector, ends[:-1])
    return {name: part.reshape(w.shape) for part, (name, w) in zip(parts, like.items(), strict=True)}


def decays(name: str) -> bool:
    """Whether weight decay applies to the reference's parameter of this name."""
    return name != "bias"


def is_kernel(name: str) -> bool:
    return name not in ("bias", "embedding")


@cache
def _compiled():
    def hessian_product(params, t, vector):
        return jax.jvp(jax.grad(lambda p: loss(p, t)), (params,), (vector,))[1]

    return jax.jit(jax.value_and_grad(loss)), jax.jit(hessian_product)


def value_and_grad(params: Params, t: int) -> tuple[float, Params]:
    """The loss at step t = 0, 1, ... and its gradient, for a reference."""
    with jax.enable_x64(True):
        value, grads = _compiled()[0](joined(params), t)
    return float(value), split(grads)


def hessian_product(params: Params, t: int, vector: Params) -> Params:
    """The Hessian of the loss at step t times a vector, for a reference."""
    with jax.enable_x64(True):
        return split(_compiled()[1](joined(params), t, joined(vector)))


def settings(text: str) -> tuple[str, dict[str, Any]]:
    """The name in `text`, and all of the optimizer's hyperparameters."""
    name, chosen = optimizers.parse(text)
    entry = optimizers.OPTIMIZERS[name]
    return name, {"learning_rate": entry.learning_rate, **entry.hyperparameters, **chosen}


def floats(text: str, hyperparameters: Mapping[str, float]) -> dict[str, float]:
    """The hyperparameters that are leaves of the state, some of them replaced."""
    return {key: value for key, value in settings(text)[1].items() if isinstance(value, float)} | dict(hyperparameters)


class Path(NamedTuple):
    """The parameters, and those to evaluate, after each step."""

    params: list[Params]
    evaluated: list[Params]


def make(text: str, schedule=None) -> optimizers.Optimizer:
    return optimizers.make(text, roles=lambda params: lookup(ROLES, params), schedule=schedule)


def ask(params, t):
    """The gradient of step t in the parameters' dtype, and what else an optimizer may ask for."""
    at = partial(loss, t=t)
    value, grads = jax.value_and_grad(at)(params)
    return grads, {"value": value, "value_fn": at, "grad_fn": jax.grad(at)}


@cache
def program(text: str, schedule):
    """An optimizer, and its run: `(params, hyperparameters, noise) -> (params, state), (params, updates, evaluated)`.

    The last three are stacked, a row a step.
    """
    optimizer = make(text, schedule)

    def advance(carry, t):
        params, state = carry
        grads, extra = ask(params, t)
        updates, state = optimizer.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates, optimizer.evaluation_params(state, params))

    def run(params, hyperparameters, noise):
        return jax.lax.scan(advance, (params, optimizer.init(params, hyperparameters)), noise)

    return optimizer, jax.jit(run)


def ours(text: str, hyperparameters: Mapping[str, float] = NONE, *, schedule=None, noise=range(STEPS)) -> Path:
    """The path in float64 of an optimizer of this library.

    Args:
      text, schedule: see `optimizers.make`.
      hyperparameters: floats that replace the defaults, without another compilation.
      noise: the t of each step's loss.
    """
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, START)
        run = program(text, schedule)[1]
        path, _, evaluated = jax.device_get(run(params, floats(text, hyperparameters), np.asarray(noise))[1])
    return Path(steps(path), steps(evaluated))


def steps(stacked: dict[str, Any]) -> list[Params]:
    """The parameters of each step, from arrays whose first axis is the steps."""
    return [split({name: np.asarray(x[t]) for name, x in stacked.items()}) for t in range(len(stacked["bias"]))]
