"""Losses: formulas of outputs and targets, one float32 value an example."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-sum_k q_k log softmax(logits)_k, with q = (1 - a) onehot(label) + a / K for the label smoothing a.

    logits: (..., K) of any float dtype; labels: (...), integers. Returns (...), float32.
    Source: Szegedy et al. 2016, Rethinking the inception architecture, section 7.

    >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]))
    Array([0.6931472], dtype=float32)
    """
    logits = logits.astype(jnp.float32)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing == 0:
        return hard
    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - label_smoothing) * hard + label_smoothing * uniform


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """(output - target)^2, its mean over all axes but the first: (B, ...) twice to (B,), float32.

    Raises ValueError for shapes that differ: (B, 1) and (B,) would broadcast to (B, B).

    >>> squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]]))
    Array([2.], dtype=float32)
    """
    if outputs.shape != targets.shape:
        raise ValueError(f"squared_error: the outputs' shape {outputs.shape} is not the targets', {targets.shape}")
    error = outputs.astype(jnp.float32) - targets.astype(jnp.float32)
    return jnp.square(error).mean(axis=tuple(range(1, error.ndim)))
