"""What changes a task: each function takes a Task and returns a Task."""

import jax
import jax.numpy as jnp

from deeplearn.metrics import Mean
from deeplearn.tasks.task import Task


def preprocess(task: Task, function) -> Task:
    """Every batch passes through `function(batch) -> batch` first, in training and in evaluation alike."""
    return Task(
        init=task.init,
        loss=lambda params, model_state, batch, rng: task.loss(params, model_state, function(batch), rng),
        evaluate=lambda params, model_state, batch, rng: task.evaluate(params, model_state, function(batch), rng),
        predict=lambda params, model_state, batch: task.predict(params, model_state, function(batch)),
    )


def augment(task: Task, function) -> Task:
    """Training batches, and only those, pass through `function(rng, batch) -> batch` first."""

    def loss(params, model_state, batch, rng):
        augment_rng, loss_rng = jax.random.split(rng)
        return task.loss(params, model_state, function(augment_rng, batch), loss_rng)

    return task._replace(loss=loss)


def with_parameters(task: Task, function) -> Task:
    """The training loss at `function(params)`, inside what is differentiated."""
    return task._replace(loss=lambda params, *rest: task.loss(function(params), *rest))


def regularize(task: Task, l1: float = 0.0, l2: float = 0.0) -> Task:
    """The training loss gains l1 * sum |w| + l2 / 2 * sum w^2 over the weights, biases and scales left out.

    The penalty is a metric of its own, `penalty`; evaluation stays without it.
    Source: Goodfellow, Bengio and Courville 2016, section 7.1.
    """
    if not l1 and not l2:
        return task

    def is_weight(path, x):  # of a model whose layers are one array biases and scales have two axes too
        return x.ndim >= 2 and jax.tree_util.keystr(path[-1:], simple=True) not in ("bias", "scale")

    def penalty(params):
        weights = [w for path, w in jax.tree_util.tree_leaves_with_path(params) if is_weight(path, w)]
        return sum(l1 * jnp.abs(w).sum() + l2 / 2 * jnp.square(w).sum() for w in weights)

    def loss(params, model_state, batch, rng):
        value, (model_state, metrics) = task.loss(params, model_state, batch, rng)
        cost = penalty(params)
        both = Mean(value.total + cost * value.count, value.count) if isinstance(value, Mean) else value + cost
        return both, (model_state, {**metrics, "penalty": cost})

    return task._replace(loss=loss)
