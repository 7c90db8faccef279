"""Where a token stands: what attention is told of it."""

import jax
import jax.numpy as jnp

KINDS = ("learned", "rotary", "alibi")


def rotate(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns the pair (x_i, x_{i + D/2}) of each head by the angle position base^(-2i / D).

    The product of a query and a key depends then on how far apart they are. x: (B, T, heads, D), D even; positions:
    (T,) integers. Returns x's shape and dtype.
    Source: Su et al. 2021, RoFormer: enhanced Transformer with rotary position embedding, section 3.2.

    >>> rotate(jnp.array([[[[1.0, 0.0]], [[1.0, 0.0]]]]), jnp.arange(2)).round(3).tolist()
    [[[[1.0, 0.0]], [[0.5400000214576721, 0.8410000205039978]]]]
    """
    half = x.shape[-1] // 2
    frequencies = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies[None, None]  # (T, 1, D/2)
    cos, sin = jnp.cos(angles)[None], jnp.sin(angles)[None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # (B, T, heads, D/2)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def alibi(heads: int, keys: int) -> jax.Array:
    """A bias (1, heads, 1, keys), float32, of slope m_h for each step that a key is nearer: m_h j for key j.

    The softmax takes no notice of what all keys of a query share, so that m (j - i) is m j. With n the largest
    power of two up to `heads`, m_h = 2^(-8 h / n) for h = 1 .. n; the rest have every other slope of 2 n heads.
    Source: Press et al. 2022, Train short, test long: attention with linear biases, section 3.

    >>> alibi(2, 3)[0, :, 0].tolist()
    [[0.0, 0.0625, 0.125], [0.0, 0.00390625, 0.0078125]]
    """
    n = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * h / n) for h in range(1, n + 1)]
    slopes += [2 ** (-8 * h / (2 * n)) for h in range(1, 2 * (heads - n), 2)]
    return (jnp.array(slopes, jnp.float32)[:, None] * jnp.arange(keys, dtype=jnp.float32)[None])[None, :, None]
