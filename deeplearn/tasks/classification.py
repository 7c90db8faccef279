"""Classification: cross-entropy on labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deeplearn import losses
from deeplearn.metrics import Mean
from deeplearn.tasks.task import Task


def classification(
    model,
    shape: tuple[int, ...],
    classes: int,
    *,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    class_weights: Sequence[float] | None = None,
) -> Task:
    """The task of a Flax model that maps `batch["image"]` (B, *shape) to logits (B, classes).

    Trains on the mean of -log softmax(logits)[label]; evaluates loss, accuracy, accuracy by class (`class_accuracy`,
    (classes,)) and `confusion` (classes, classes): the fraction of the examples that are of the row's class and taken
    for the column's. A label outside of [0, classes) makes the loss NaN. The options are those of
    `losses.cross_entropy` and PyTorch's, whose mean over a batch this is, sum of losses over sum of weights; but a
    batch without a label that counts has the loss 0, and PyTorch's NaN.

    Args:
      model: the Flax module.
      shape: of an image.
      classes: how many there are.
      label_smoothing: in training alone.
      ignore_label: of examples that count for nothing, such as -100.
      class_weights: a weight for each class, in the loss of training and evaluation; accuracies are without weights.

    Raises:
      UserError: options that make no sense.

    >>> from deeplearn.models.mlp import MLP
    >>> task = classification(MLP(classes=10), (8, 8, 1), 10)
    """
    losses.check_options(label_smoothing, class_weights, classes)

    def init(rng):
        variables = dict(model.init({"params": rng, "dropout": rng}, jnp.zeros((1, *shape), jnp.float32)))
        return variables.pop("params"), variables

    def loss(params, model_state, batch, rng):
        logits, model_state = model.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": rng},
            mutable=list(model_state),
        )
        value, accuracy = losses.over_batch(logits, batch["label"], label_smoothing, ignore_label, class_weights)
        return value, (model_state, {"accuracy": accuracy})

    def predict(params, model_state, batch):
        return model.apply({"params": params, **model_state}, batch["image"])

    def evaluate(params, model_state, batch, rng):
        del rng
        logits = predict(params, model_state, batch)
        labels = batch["label"]
        mask = batch.get("mask", jnp.ones(logits.shape[0], jnp.float32))  # (B,)
        counted = mask * losses.label_weights(labels, ignore_label)
        weights = mask * losses.label_weights(labels, ignore_label, class_weights)
        values = mask * losses.cross_entropy(logits, labels, 0.0, ignore_label, class_weights)
        truth = jax.nn.one_hot(labels, classes, dtype=jnp.float32) * counted[:, None]  # (B, classes)
        guess = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes, dtype=jnp.float32)  # (B, classes)
        confusion = jnp.einsum("bt,bg->tg", truth, guess)
        return {
            "loss": Mean(values.sum(), weights.sum()),
            "accuracy": Mean(jnp.trace(confusion), counted.sum()),
            "class_accuracy": Mean(jnp.diag(confusion), truth.sum(axis=0)),
            "confusion": Mean(confusion, mask.sum()),
        }

    return Task(init, loss, evaluate, predict)
