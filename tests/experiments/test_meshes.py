"""The same experiment on 1 and on 8 devices, in every kind of mesh."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from deeplearn.parallel import cost
from deeplearn.training import program
from tests.experiments.conftest import EXPERIMENTS, build

STEPS, RATE = 3, 0.0001


class Run(NamedTuple):
    """A few steps on a mesh.

    Fields:
      losses: of the steps, then on validation.
      gradients: their sum over the steps, by parameters.
      spent: the compiled program's Cost.
      gathered: bytes of parameters that fsdp is to gather: in a loop over layers forward and again backward, else once.
    """

    losses: list[float]
    gradients: Any
    spent: cost.Cost
    gathered: int


@functools.cache
def run(name, mesh):
    budget = {"batch_size": 16, "steps": STEPS, "log_every": 1, "schedule": "constant"}
    e = build(name, mesh=mesh, **budget, optimizer="minibatch_sgd", learning_rate=RATE)
    built = program.build(e)
    state, losses = built.init(), []
    start = jax.device_get(state.params)
    chunk = built.chunk.lower(built.abstract, built.feed.data(0, 1), jax.ShapeDtypeStruct((), "int32")).compile()
    for step in range(STEPS):
        state, metrics = chunk(state, built.feed.data(step, 1), np.int32(1))
        losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, built.abstract)
    losses.append(float(built.evaluate(state, "validation")["loss"]))
    gradients = jax.tree.map(lambda a, b: (np.float64(a) - b) / RATE, start, jax.device_get(state.params))
    divided = [(p, x) for p, x in jax.tree_util.tree_leaves_with_path(state.params) if "fsdp" in x.sharding.spec]
    gathered = sum(x.nbytes * (2 if path[0].key == "layers" else 1) for path, x in divided)
    return Run(losses, gradients, cost.of(chunk.as_text()), gathered)


MESHES = [(name, mesh) for name in EXPERIMENTS for mesh in ("data:8", "fsdp:8", "data:4,tensor:2")]


@pytest.mark.parametrize("name, mesh", [*MESHES, ("shakespeare_gpt", "data:2,sequence:4")])
def test_losses_and_gradients_are_those_of_one_device(name, mesh):
    """Up to the order of float32 sums over the batch, 1e-7, which three steps and batch norm magnify. By small steps of
    plain gradient descent: Adam's have the size of the rate whatever the gradient's, so that a gradient that is nothing
    but rounding would move its parameter as far one way on one device as the other way on eight."""
    found, one = run(name, mesh), run(name, "data:1")
    np.testing.assert_allclose(found.losses, one.losses, rtol=1e-4)
    # A step this small is lost in the rounding of a parameter near 1, so leaves are compared, against the largest.
    largest = max(np.linalg.norm(g) for g in jax.tree.leaves(one.gradients))
    off = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / largest), found.gradients, one.gradients)
    assert max(jax.tree.leaves(off)) < 1e-3, off


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_array_is_gathered_that_was_not_meant_to(name):
    """With data nothing is: gradients, batch statistics and metrics are summed. With fsdp parameters are."""
    assert set(run(name, "data:8").spent.counts) == {"all-reduce"}
    found = run(name, "fsdp:8")
    assert set(found.spent.counts) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert found.spent.payload["all-gather"] == found.gathered
