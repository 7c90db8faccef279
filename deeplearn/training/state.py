"""The state of a run: one pytree, and nothing else changes."""

from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn import fields

# What each use of a run's randomness folds into its key first: the uses never share bits.
INIT, ORDER, STEP, EVALUATE = range(4)


class TrainState(NamedTuple):
    """Everything that a run is: after any step, the rest follows from it and the data.

    Fields:
      step: int32 scalar, the steps done.
      params, model_state: the model's, float32.
      opt_state: the optimizer's, its hyperparameters among the leaves.
      rng: the run's key, which never changes; step n uses `fold_in` of it.
    """

    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    rng: Any


def key(seed) -> jax.Array:
    """The key of a seed from 0 to 2^32 - 1, an integer or a traced uint32; the same with and without jax_enable_x64.

    Raises UserError for another integer, of which `jax.random.key` would drop bits.

    >>> key(2**32)
    Traceback (most recent call last):
    deeplearn.errors.UserError: seed is 4294967296; it must be at most 4294967295
    """
    if isinstance(seed, Integral):
        fields.check("seed", seed, fields.SEED)
        seed = np.uint32(seed)
    return jax.random.key(seed)


def begin(task, seed):
    """The parameters, the model's state and the key of a run: what does not depend on the optimizer."""
    rng = key(seed)
    return *task.init(jax.random.fold_in(rng, INIT)), rng


def create(task, optimizer, seed) -> TrainState:
    """The state before the first step; pure in `seed`, so that it can be vmapped over seeds."""
    params, model_state, rng = begin(task, seed)
    return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), rng)
