"""Drawing tokens from a language model, one after another."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplearn import fields
from deeplearn.errors import UserError
from deeplearn.fields import COUNT, Field
from deeplearn.parallel import mesh


def draw(rng: jax.Array, logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Tokens (B,) int32 of logits (B, V): from softmax(logits / temperature), as far as `truncate` leaves it.

    Temperature 0, and any below 1e-6, is greedy: the likeliest token, the first of equals. Logits that have a NaN give
    -1, which is no token. The options are static.

    >>> draw(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]]), 0.0, 0, 1.0)
    Array([1], dtype=int32)
    """
    if temperature < 1e-6:  # what float32 rounds off the logits would decide, and then they overflow
        tokens = jnp.argmax(logits, axis=-1)
    else:
        tokens = jax.random.categorical(rng, truncate(logits / temperature, top_k, top_p))
    return jnp.where(jnp.isnan(logits).any(axis=-1), -1, tokens).astype(jnp.int32)


def truncate(logits: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """The logits (B, V), -inf beyond the k largest, and beyond the fewest whose probabilities come to p.

    k = 0 and p = 1 leave all. Of equals at the k-th place all stay; p counts among what k left. The likeliest always
    stays. Sources: Fan et al. 2018, Hierarchical neural story generation, section 5.1; Holtzman et al. 2020, The
    curious case of neural text degeneration, section 3.1.

    >>> truncate(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), top_p=0.7).round(1).tolist()
    [[-0.699999988079071, -1.2000000476837158, -inf]]
    """
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]  # (B, 1)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        order = jnp.argsort(-logits, axis=-1)
        sorted_ = jnp.take_along_axis(logits, order, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(sorted_, axis=-1), axis=-1) - jax.nn.softmax(sorted_, axis=-1)
        kept = (
            jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
            .at[jnp.arange(logits.shape[0]), order[:, 0]]
            .set(True)
        )
        logits = jnp.where(kept, logits, -jnp.inf)
    return logits


def generate(
    step: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    params: Any,
    empty: Any,
    length: int,
    prompt: np.ndarray,
    count: int,
    rng: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[np.ndarray]:
    """The `count` tokens that follow a prompt, each (B,) int32 as soon as it is drawn.

    One program reads the prompt, one draws a token and reads it, whatever their number. Where the cache is full, the
    last half of what was read is read anew. Token n is drawn by `fold_in(rng, n)`.

    Args:
      step: `(params, tokens (B, T), cache) -> (logits (B, T, V), cache)`, which reads tokens.
      empty: a cache of no tokens, with room for `length`, 2 at least.
      prompt: (B, T) integers, T from 1; of more than `length` the last are read.
      temperature, top_k, top_p: see `draw`.

    Raises:
      UserError: logits are NaN, as where the prompt has tokens that the model does not know.
    """
    fields.check("length", length, COUNT._replace(low=2))
    fields.check("temperature", temperature, Field(float, 0))
    fields.check("top_k", top_k, Field(int, 0))
    fields.check("top_p", top_p, Field(float, 0, 1))

    @jax.jit
    def read(params, tokens, cache):
        logits, cache = step(params, tokens, cache)
        return logits[:, -1], cache

    @partial(jax.jit, donate_argnums=2)
    def advance(params, logits, cache, rng, n):
        token = draw(jax.random.fold_in(rng, n), logits, temperature, top_k, top_p)
        logits, cache = step(params, token[:, None], cache)
        return token, logits[:, -1], cache

    def here(x):
        return mesh.beside(np.int32(x), rng)

    half = length // 2
    text = np.asarray(prompt, np.int32)[:, -length:]
    logits, cache = read(params, here(text), empty)
    filled = text.shape[1]
    for n in range(count):
        if filled == length:
            text = text[:, -half:]
            _, cache = read(params, here(text), empty)
            filled = half
        token, logits, cache = advance(params, logits, cache, rng, here(n))
        if (jax.device_get(token) < 0).any():
            raise UserError(
                "the logits are NaN: the prompt has tokens unknown to the model, or its parameters are not finite"
            )
        filled += 1
        text = np.concatenate([text, jax.device_get(token)[:, None]], axis=1)[:, -length:]
        yield text[:, -1]
