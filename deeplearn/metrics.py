"""Metrics as sums and counts, so that they add up over batches, devices and processes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mean(NamedTuple):
    """A mean not yet divided: `total` and `count`, scalars or arrays of one shape, float32.

    >>> result({"loss": add({"loss": Mean(3.0, 2.0)}, {"loss": Mean(1.0, 2.0)})["loss"]})
    {'loss': 1.0}
    """

    total: Any
    count: Any


def rises(name: str) -> bool | None:
    """Whether more of a metric is better; None for one that nothing is known of.

    >>> rises("accuracy"), rises("validation/loss"), rises("gradient_norm")
    (True, False, None)
    """
    kind = name.rpartition("/")[2].rpartition("_")[2]
    return {"accuracy": True, "loss": False, "error": False}.get(kind)


def add(a, b):
    """The sum of two trees of means, field by field."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def result(means: dict[str, Mean]) -> dict[str, Any]:
    """Divide: total / count for each metric; a count of 0 gives NaN for arrays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: mean.total / mean.count for name, mean in means.items()}


def divided(x: Any) -> Any:
    """A `Mean` divided, 0 where nothing counts; anything else as it is.

    >>> [float(divided(x)) for x in (Mean(jnp.float32(3), jnp.float32(2)), Mean(jnp.float32(0), jnp.float32(0)), 5)]
    [1.5, 0.0, 5.0]
    """
    return x.total / divisor(x) if isinstance(x, Mean) else x


def divisor(mean: Mean) -> jax.Array:
    """The count of a mean, 1 in place of 0."""
    return jnp.where(mean.count == 0, 1, mean.count)
