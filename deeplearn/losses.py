"""Losses: formulas of outputs and targets, one float32 value an example."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deeplearn import fields
from deeplearn.errors import UserError
from deeplearn.layers.indices import in_range
from deeplearn.metrics import Mean


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    class_weights: Sequence[float] | None = None,
) -> jax.Array:
    """-sum_k w_k q_k log softmax(logits)_k, with q = (1 - a) onehot(label) + a / K for the label smoothing a.

    The mean that PyTorch takes divides the sum of these values by the sum of `label_weights`.

    Args:
      logits: (..., K), any float dtype. A logit of -inf is no class: smoothing leaves it out.
      labels: (...), integers; NaN for a label that is none of the K.
      label_smoothing: a, in [0, 1).
      ignore_label: examples of this label have the value 0, and no gradient; None: every label counts.
      class_weights: K numbers w; None: all 1.

    Returns:
      (...), float32.

    Source: Szegedy et al. 2016, Rethinking the inception architecture, section 7.

    >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]))
    Array([0.6931472], dtype=float32)
    >>> cross_entropy(jnp.zeros((2, 2)), jnp.array([1, -100]), ignore_label=-100, class_weights=(1.0, 2.0)).round(2)
    Array([1.39, 0.  ], dtype=float32)
    """
    classes = logits.shape[-1]
    if class_weights is not None and len(class_weights) != classes:
        raise ValueError(f"cross_entropy: {len(class_weights)} class weights for {classes} classes")
    counted, labels = _counted(labels, ignore_label, classes)
    logits = logits.astype(jnp.float32)
    # Less the largest: what all logits have in common then costs no digits. The label's is taken before, so that no
    # second array of all logits is kept.
    largest = jax.lax.stop_gradient(logits.max(axis=-1))
    normalizer = jnp.log(jnp.exp(logits - largest[..., None]).sum(axis=-1))
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    each = normalizer - (chosen - largest)
    if class_weights is not None:
        each = label_weights(labels, None, class_weights) * each
    if label_smoothing:
        possible = logits > -jnp.inf
        rest = jnp.where(possible, normalizer[..., None] - (logits - largest[..., None]), 0)
        if class_weights is not None:
            rest = rest * jnp.array(class_weights, jnp.float32).reshape((1,) * labels.ndim + (classes,))
        uniform = rest.sum(axis=-1) / possible.sum(axis=-1, dtype=jnp.float32)
        each = (1 - label_smoothing) * each + label_smoothing * uniform
    return each if ignore_label is None else jnp.where(counted, each, 0)


def label_weights(
    labels: jax.Array, ignore_label: int | None = None, class_weights: Sequence[float] | None = None
) -> jax.Array:
    """The weight of each example in a mean of cross-entropies: that of its class, 0 where its label is ignored.

    Args:
      labels: (...), integers.
      ignore_label, class_weights: those of `cross_entropy`.

    Returns:
      (...), float32.

    >>> label_weights(jnp.array([1, 0, -100]), -100, (1.0, 2.0))
    Array([2., 1., 0.], dtype=float32)
    """
    counted, labels = _counted(labels, ignore_label, None if class_weights is None else len(class_weights))
    weights = counted.astype(jnp.float32)
    if class_weights is None:
        return weights
    return weights * jnp.array(class_weights, jnp.float32).at[labels].get(mode="fill", fill_value=jnp.nan)


def over_batch(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    class_weights: Sequence[float] | None = None,
) -> tuple[jax.Array | Mean, jax.Array | Mean]:
    """The mean cross-entropy, and the fraction of the labels with the largest logit; Means where labels have weights.

    The arguments are those of `cross_entropy`.

    >>> loss, accuracy = over_batch(jnp.zeros((2, 2)), jnp.array([0, -100]), ignore_label=-100)
    >>> accuracy
    Mean(total=Array(0.5, dtype=float32), count=Array(0.5, dtype=float32))
    """
    values = cross_entropy(logits, labels, label_smoothing, ignore_label, class_weights)
    correct = hits(logits, labels)
    if ignore_label is None and class_weights is None:
        return values.mean(), correct.mean()
    weights, counted = (label_weights(labels, ignore_label, each) for each in (class_weights, None))
    return Mean(values.mean(), weights.mean()), Mean((correct * counted).mean(), counted.mean())


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the label's logit is the first of the largest, else 0: (..., K) and (...) to (...), float32.

    >>> hits(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0])).tolist()
    [1.0, 0.0]
    """
    likeliest = jax.lax.argmax(logits, logits.ndim - 1, jnp.int32)
    return (likeliest == in_range(labels, logits.shape[-1])).astype(jnp.float32)


def check_options(label_smoothing: float, class_weights: Sequence[float] | None, classes: int) -> None:
    """Raise UserError for options of `cross_entropy` that make no sense for so many classes."""
    fields.check("label_smoothing", label_smoothing, fields.FRACTION)
    if class_weights is None:
        return
    if len(class_weights) != classes:
        raise UserError(f"there are {len(class_weights)} class weights for {classes} classes; give one for each")
    fields.check("class_weights", tuple(class_weights), fields.Field(float, 0, many=True))
    if not any(class_weights):
        raise UserError("class_weights are all 0; at least one must be above 0")


def _counted(labels: jax.Array, ignore_label: int | None, classes: int | None) -> tuple[jax.Array, jax.Array]:
    """Which labels count, and the labels as `in_range` has them, those that are ignored 0."""
    wide = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # -100 is no uint8
    counted = jnp.full(labels.shape, True) if ignore_label is None else wide != ignore_label
    return counted, jnp.where(counted, wide if classes is None else in_range(wide, classes), 0)


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
