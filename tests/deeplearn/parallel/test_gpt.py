"""The GPT on 8 devices in every kind of mesh: the loss of one device, and no collective that was not meant."""

import functools
import re
from collections import Counter

import jax
import numpy as np
import pytest

from deeplearn.config import base_config
from deeplearn.data import text
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import wire
from deeplearn.models.gpt import AXES, GPT, Architecture
from deeplearn.tasks.language_modelling import language_modelling
from deeplearn.training import program

KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
MODEL = Architecture(vocabulary=64, length=32, width=64, depth=4, heads=4)
VARIANTS = {
    "plain": MODEL,
    "modern": MODEL._replace(positions="rotary", norm="rms", mlp="swiglu", bias=False, kv_heads=2, remat="dots"),
}


def compiled(mesh, variant="plain", **fields):
    tokens = np.random.RandomState(0).randint(0, 64, 33 * 64 + 1).astype(np.uint8)
    source = Arrays({"tokens": text.windows(tokens, 32)})
    budget = {"batch_size": 16, "steps": 3, "log_every": 1, "learning_rate": 0.001}
    config = base_config(mesh=mesh, **budget, **fields)
    model = GPT(VARIANTS[variant])
    task = language_modelling(model, 32)
    return program.build(wire(config, task, Data("noise", source, source, source), model, rules=AXES))


@functools.cache
def losses(mesh, variant="plain", **fields):
    built = compiled(mesh, variant, **fields)
    state, found = built.init(), []
    for step in range(3):
        state, metrics = built.chunk(state, built.feed.data(step, 1), 1)
        found.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, built.abstract)
    return [*found, float(built.evaluate(state, "validation")["loss"])]


MESHES = ["data:8", "fsdp:8", "data:4,tensor:2", "data:2,fsdp:2,tensor:2"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mesh", MESHES)
def test_the_loss_is_that_of_one_device(mesh, variant):
    np.testing.assert_allclose(losses(mesh, variant), losses("data:1", variant), rtol=2e-5)


def test_zero_changes_where_alone():
    np.testing.assert_allclose(losses("data:8", zero=True), losses("data:1"), rtol=2e-5)


@pytest.mark.parametrize(
    "mesh, fields, in_layers, outside",
    [
        ("data:8", {}, {"all-reduce": 1}, {"all-reduce": 1}),  # the gradients of a layer, and of the rest
        # Each of a layer's four matrices is gathered forward and again backward, and the two embeddings once.
        ("fsdp:8", {}, {"all-gather": 8, "all-reduce": 1}, {"all-gather": 2, "all-reduce": 1}),
        # Sums after attention and the MLP, forward and backward, and of the layer's gradients over data.
        ("data:4,tensor:2", {}, {"all-reduce": 5}, None),
        ("data:2,fsdp:2,tensor:2", {}, {"all-gather": 8}, None),
        # Each of the parameters that are not small, which are updated in parts.
        ("data:8", {"zero": True}, {}, None),
    ],
    ids=str,
)
def test_collectives(mesh, fields, in_layers, outside):
    """Of a step in a compiled chunk, by whether they are in a loop over layers."""
    built = compiled(mesh, **fields)
    found = built.chunk.lower(built.abstract, built.feed.data(0, 1), 1).compile().as_text()
    lines = re.findall(rf" ({KINDS})(?:-start)?\(.*op_name=\"([^\"]*)\"", found)
    layers = Counter(kind for kind, name in lines if name.count("while/body") > 1)
    rest = Counter(kind for kind, name in lines if name.count("while/body") == 1)  # once a step
    assert {kind: layers[kind] for kind in in_layers} == in_layers
    assert outside is None or dict(rest) == outside
    assert not {"all-to-all", "collective-permute"} & {*layers, *rest}
    if mesh == "data:8":
        assert not layers["all-gather"]
    if fields.get("zero"):
        assert rest["all-gather"] == 5


def test_what_a_device_holds():
    """An eighth of what is not small, of Adam's moments with `zero` and of the parameters too with fsdp."""

    def held(mesh, **fields):
        state = compiled(mesh, optimizer="adam", **fields).abstract
        size = lambda tree: sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
        return size(state.params), size(state.opt_state)

    (params, moments), zero, fsdp = held("data:8"), held("data:8", zero=True), held("fsdp:8")
    assert zero[0] == params and zero[1] < 0.15 * moments
    assert fsdp[0] < 0.15 * params and fsdp[1] < 0.15 * moments


def test_placement_by_flag():
    state = compiled("data:2,fsdp:2,tensor:2", placement="vocabulary=-, layers/up/kernel$=-+tensor+fsdp").abstract
    assert state.params["token_embedding"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
    assert state.params["layers"]["up"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(None, "tensor", "fsdp")
    assert state.params["layers"]["down"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(None, "tensor", "fsdp")
