"""What is compared with `jax.nn.dot_product_attention`."""

import jax
import numpy as np

from tests.kernels.attention.cases import draw

IMPLEMENTATIONS = [None, "xla"]  # at short lengths None is the formula
BATCH, LENGTH, SPAN, HEADS, GROUPS, DEPTH = 2, 21, 35, 4, 2, 8
SHAPES = (BATCH, LENGTH, HEADS, DEPTH), (BATCH, SPAN, GROUPS, DEPTH), (BATCH, SPAN, GROUPS, DEPTH)
BOUNDS = {"float32": 3e-6, "bfloat16": 2e-2, "float16": 3e-3}


def theirs(*args, **kwargs):
    """jax.nn's own promotes dtypes and ranks, which these tests otherwise forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.nn.dot_product_attention(*args, **kwargs)


def floats(seed, *shape):
    return draw(seed, *shape).astype(np.float32)


def coin(seed, *shape):
    """True for the first key, so that each query has one: without any, jax.nn gives the mean of the values."""
    x = np.random.RandomState(seed).uniform(size=shape) < 0.6
    x[..., 0] = True
    return x


def close(found, wanted, bound, size=0.0):
    """Shapes, dtypes and values, relative to the norm of what is wanted or to a size that is larger."""
    for ours, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert ours.shape == other.shape and ours.dtype == other.dtype
        if ours.dtype != jax.dtypes.float0:
            within = max(bound, BOUNDS[ours.dtype.name])
            ours, other = (np.asarray(x, np.float64) for x in (ours, other))
            assert np.linalg.norm(ours - other) <= within * max(np.linalg.norm(other), size)
