"""Regression: mean squared error on real targets."""

import jax.numpy as jnp

from deeplearn import losses
from deeplearn.metrics import Mean
from deeplearn.tasks.task import Task


def regression(model, shape: tuple[int, ...], baseline=None) -> Task:
    """The task of a Flax model that maps `batch["inputs"]` (B, *shape) to `batch["targets"]`.

    Trains on mean((prediction - target)^2). `baseline`, a function `inputs -> predictions`, is evaluated beside the
    model as `baseline_loss`: an error means something only next to that of the trivial guess.

    >>> from deeplearn.models.mlp import MLP
    >>> task = regression(MLP(classes=1), (10, 1), baseline=lambda inputs: inputs[:, -1])
    """

    def init(rng):
        variables = dict(model.init({"params": rng, "dropout": rng}, jnp.zeros((1, *shape), jnp.float32)))
        return variables.pop("params"), variables

    def loss(params, model_state, batch, rng):
        prediction, model_state = model.apply(
            {"params": params, **model_state},
            batch["inputs"],
            train=True,
            rngs={"dropout": rng},
            mutable=list(model_state),
        )
        return losses.squared_error(prediction, batch["targets"]).mean(), (model_state, {})

    def predict(params, model_state, batch):
        return model.apply({"params": params, **model_state}, batch["inputs"])

    def evaluate(params, model_state, batch, rng):
        del rng
        targets = batch["targets"]
        mask = batch.get("mask", jnp.ones(targets.shape[0], jnp.float32))  # (B,)

        def error(prediction):
            each = losses.squared_error(prediction, targets).reshape(targets.shape[0], -1).mean(axis=-1)  # (B,)
            return Mean((each * mask).sum(), mask.sum())

        means = {"loss": error(predict(params, model_state, batch))}
        return means if baseline is None else {**means, "baseline_loss": error(baseline(batch["inputs"]))}

    return Task(init, loss, evaluate, predict)
