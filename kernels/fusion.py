"""What XLA must not fuse."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kernels.meshes import varying


def apart(function: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """`function(*operands)`, fused with nothing before or after it.

    XLA computes an operand anew wherever that is fused, and carries nothing into a condition; that this one holds, it
    does not see through the barrier.
    """
    result = jax.eval_shape(function, *operands)
    zeros = lambda *operands: varying((jnp.zeros(result.shape, result.dtype), *operands))[0]  # noqa: E731
    return lax.cond(lax.optimization_barrier(jnp.asarray(True)), function, zeros, *operands)
