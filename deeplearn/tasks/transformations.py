"""What changes a task: each function takes a Task and returns a Task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deeplearn.metrics import Mean
from deeplearn.roles import by_shape
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


def regularize(task: Task, l1: float = 0.0, l2: float = 0.0, roles: Callable[[Any], Any] = by_shape) -> Task:
    """The training loss gains l1 * sum |w| + l2 / 2 * sum w^2 over kernels and embeddings.

    The penalty is a metric of its own, `penalty`; evaluation stays without it.
    Source: Goodfellow, Bengio and Courville 2016, section 7.1.

    Args:
      task: without the penalty.
      l1, l2: its factors; with both 0 the task stays as it is.
      roles: `params -> tree of Role`, see deeplearn.roles.
    """
    if not l1 and not l2:
        return task

    def penalty(params):
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(roles(params)), strict=True)
        weights = [w for w, role in pairs if role.decays]
        return sum(l1 * jnp.abs(w).sum() + l2 / 2 * jnp.square(w).sum() for w in weights)

    def loss(params, model_state, batch, rng):
        value, (model_state, metrics) = task.loss(params, model_state, batch, rng)
        cost = penalty(params)
        both = Mean(value.total + cost * value.count, value.count) if isinstance(value, Mean) else value + cost
        return both, (model_state, {**metrics, "penalty": cost})

    return task._replace(loss=loss)
