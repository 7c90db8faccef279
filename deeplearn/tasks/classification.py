"""Classification: cross-entropy on labels."""

import jax
import jax.numpy as jnp

from deeplearn import fields, losses
from deeplearn.layers.indices import in_range
from deeplearn.metrics import Mean
from deeplearn.tasks.task import Task


def classification(model, shape: tuple[int, ...], classes: int, *, label_smoothing: float = 0.0) -> Task:
    """The task of a Flax model that maps `batch["image"]` (B, *shape) to logits (B, classes).

    Trains on the mean of -log softmax(logits)[label]; evaluates loss, accuracy, accuracy by class (`class_accuracy`,
    (classes,)) and `confusion` (classes, classes): the fraction of the examples that are of the row's class and taken
    for the column's. A label outside of [0, classes) makes the loss NaN.

    >>> from deeplearn.models.mlp import MLP
    >>> task = classification(MLP(classes=10), (8, 8, 1), 10)
    """
    fields.check("label_smoothing", label_smoothing, fields.FRACTION)

    def cross_entropy(logits, batch, label_smoothing=0.0):
        return losses.cross_entropy(logits, in_range(batch["label"], classes), label_smoothing)  # (B,)

    def init(rng):
        variables = dict(model.init({"params": rng, "dropout": rng}, jnp.zeros((1, *shape))))
        return variables.pop("params"), variables

    def loss(params, model_state, batch, rng):
        logits, model_state = model.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": rng},
            mutable=list(model_state),
        )
        value = cross_entropy(logits, batch, label_smoothing).mean()
        correct = jnp.argmax(logits, axis=-1) == batch["label"]  # (B,)
        return value, (model_state, {"accuracy": correct.astype(jnp.float32).mean()})

    def predict(params, model_state, batch):
        return model.apply({"params": params, **model_state}, batch["image"])

    def evaluate(params, model_state, batch, rng):
        del rng
        logits = predict(params, model_state, batch)
        mask = batch.get("mask", jnp.ones(logits.shape[0], jnp.float32))  # (B,)
        truth = jax.nn.one_hot(batch["label"], classes) * mask[:, None]  # (B, classes)
        guess = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes)  # (B, classes)
        confusion = jnp.einsum("bt,bg->tg", truth, guess)
        count = mask.sum()
        return {
            "loss": Mean((cross_entropy(logits, batch) * mask).sum(), count),
            "accuracy": Mean(jnp.trace(confusion), count),
            "class_accuracy": Mean(jnp.diag(confusion), truth.sum(axis=0)),
            "confusion": Mean(confusion, count),
        }

    return Task(init, loss, evaluate, predict)
