"""The same experiment on 1 and on 8 devices, in every kind of mesh."""

import functools

import jax
import numpy as np
import pytest

from deeplearn.training import program
from tests.experiments.conftest import EXPERIMENTS, build

STEPS = 3


@functools.cache
def losses(name, mesh):
    """Training losses of the first steps, then the validation loss."""
    budget = {"batch_size": 16, "steps": STEPS, "log_every": 1, "schedule": "constant"}
    e = build(name, mesh=mesh, **budget, optimizer="minibatch_sgd", learning_rate=0.0001)
    compiled = program.build(e)
    state, found = compiled.init(), []
    for step in range(STEPS):
        state, metrics = compiled.chunk(state, compiled.feed.data(step, 1), 1)
        found.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, compiled.abstract)
    return [*found, float(compiled.evaluate(state, "validation")["loss"])]


MESHES = [(name, mesh) for name in EXPERIMENTS for mesh in ("data:8", "fsdp:8", "data:4,tensor:2")]


@pytest.mark.parametrize("name, mesh", [*MESHES, ("shakespeare_gpt", "data:2,sequence:4")])
def test_the_loss_is_that_of_one_device(name, mesh):
    """Up to the order of float32 sums over the batch, 1e-7, which three steps and batch norm magnify. By small steps of
    plain gradient descent: Adam's have the size of the rate whatever the gradient's, so that a gradient that is nothing
    but rounding would move its parameter as far one way on one device as the other way on eight."""
    np.testing.assert_allclose(losses(name, mesh), losses(name, "data:1"), rtol=1e-4)
