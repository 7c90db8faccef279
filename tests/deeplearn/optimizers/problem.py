"""A small problem on which optimizers are compared with transcriptions of their papers, in float64.

Its parameters are a matrix, a bias, an embedding, a recurrent kernel and three layers in one array. A reference sees
the three as arrays of their own, "layer_0" to "layer_2".
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deeplearn import optimizers
from deeplearn.roles import Role, lookup

STEPS, DEPTH = 50, 3
Params = dict[str, np.ndarray]
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
    """At least 1; of many curvatures, coupled, not convex, and noisy: each step has a linear term of its own."""
    total = jnp.asarray(0.0, jax.tree.leaves(params)[0].dtype)
    value = 1.0 + jnp.square(0.1 * sum((jnp.sum(w) for w in params.values()), total))
    for name, w in params.items():
        scale = jnp.linspace(0.1, 3.0, w.size, dtype=w.dtype).reshape(w.shape)
        value += jnp.sum(0.5 * scale * jnp.square(w - CENTRES[name]) + 0.3 * jnp.square(jnp.sin(2.0 * w)))
        value += 0.5 * jnp.sum(jnp.asarray(NOISE[name])[t] * (w - CENTRES[name]))
    return value


def split(params: dict[str, Any]) -> Params:
    """As a reference sees them, in float64."""
    result = {name: np.asarray(w, np.float64) for name, w in params.items()}
    layers = result.pop("layers")
    return result | {f"layer_{i}": layer for i, layer in enumerate(layers)}


def joined(params: Params) -> dict[str, Any]:
    rest = {name: w for name, w in params.items() if not name.startswith("layer_")}
    return rest | {"layers": np.stack([params[f"layer_{i}"] for i in range(DEPTH)])}


def decays(name: str) -> bool:
    """Whether weight decay applies to the reference's parameter of this name."""
    return name != "bias"


def is_kernel(name: str) -> bool:
    return name not in ("bias", "embedding")


@cache
def _compiled():
    return jax.jit(jax.value_and_grad(loss))


def value_and_grad(params: Params, t: int) -> tuple[float, Params]:
    """The loss at step t = 0, 1, ... and its gradient, for a reference."""
    with jax.enable_x64(True):
        value, grads = _compiled()(joined(params), t)
    return float(value), split(grads)


def ours(text: str, dtype=np.float64, **options) -> list[Params]:
    """The parameters after each step of an optimizer of this library, see `optimizers.make`."""
    with jax.enable_x64(dtype == np.float64):
        optimizer = optimizers.make(text, roles=lambda params: lookup(ROLES, params), **options)

        def step(carry, t):
            params, state = carry
            at = lambda params: loss(params, t)  # noqa: E731
            value, grads = jax.value_and_grad(at)(params)
            extra = {"value": value, "value_fn": at, "grad_fn": jax.grad(at)}
            updates, state = optimizer.update(grads, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
        with jax.numpy_dtype_promotion("standard"):
            run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(STEPS)))
            _, path = run(params)
    return [split(jax.tree.map(lambda x, i=i: x[i], path)) for i in range(STEPS)]
