"""The same experiment on 1 and on 8 devices, in every kind of mesh."""

import functools

import jax
import numpy as np
import pytest

from deeplearn.training import program
from tests.experiments.conftest import EXPERIMENTS, build

STEPS, RATE = 3, 0.0001


@functools.cache
def trained(name, mesh):
    """Training losses of the first steps, the validation loss, and the sum of the steps' gradients."""
    budget = {"batch_size": 16, "steps": STEPS, "log_every": 1, "schedule": "constant"}
    e = build(name, mesh=mesh, **budget, optimizer="minibatch_sgd", learning_rate=RATE)
    compiled = program.build(e)
    state, losses = compiled.init(), []
    start = jax.device_get(state.params)
    for step in range(STEPS):
        state, metrics = compiled.chunk(state, compiled.feed.data(step, 1), 1)
        losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, compiled.abstract)
    gradients = jax.tree.map(lambda a, b: (np.float64(a) - b) / RATE, start, jax.device_get(state.params))
    return [*losses, float(compiled.evaluate(state, "validation")["loss"])], gradients


MESHES = [(name, mesh) for name in EXPERIMENTS for mesh in ("data:8", "fsdp:8", "data:4,tensor:2")]


@pytest.mark.parametrize("name, mesh", [*MESHES, ("shakespeare_gpt", "data:2,sequence:4")])
def test_losses_and_gradients_are_those_of_one_device(name, mesh):
    """Up to the order of float32 sums over the batch, 1e-7, which three steps and batch norm magnify. By small steps of
    plain gradient descent: Adam's have the size of the rate whatever the gradient's, so that a gradient that is nothing
    but rounding would move its parameter as far one way on one device as the other way on eight."""
    (losses, gradients), (expected, one) = trained(name, mesh), trained(name, "data:1")
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    # A step this small is lost in the rounding of a parameter near 1, so leaves are compared, against the largest.
    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(one))
    off = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / largest), gradients, one)
    assert max(jax.tree.leaves(off)) < 1e-3, off
