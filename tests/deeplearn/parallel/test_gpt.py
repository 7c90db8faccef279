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
from deeplearn.errors import UserError
from deeplearn.experiment import wire
from deeplearn.models.gpt import AXES, GPT, Architecture
from deeplearn.tasks.language_modelling import language_modelling
from deeplearn.training import program

KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
MODEL = Architecture(vocabulary=64, length=32, width=64, depth=4, heads=4)
VARIANTS = {
    "plain": MODEL,
    "modern": MODEL._replace(positions="rotary", norm="rms", mlp="swiglu", bias=False, kv_heads=2, remat="dots"),
    "odd": MODEL._replace(vocabulary=65),
    "padded": MODEL._replace(vocabulary=65, rows_multiple=2),
}


def compiled(mesh, architecture=MODEL, **fields):
    tokens = np.random.RandomState(0).randint(0, 64, 33 * 64 + 1).astype(np.uint8)
    source = Arrays({"tokens": text.windows(tokens, architecture.length)})
    budget = {"batch_size": 16, "steps": 3, "log_every": 1, "learning_rate": 0.001}
    config = base_config(mesh=mesh, **budget, **fields)
    model = GPT(architecture)
    task = language_modelling(model, architecture.length)
    return program.build(wire(config, task, Data("noise", source, source, source), model, rules=AXES))


@functools.cache
def losses(mesh, variant="plain", **fields):
    built = compiled(mesh, VARIANTS[variant], **fields)
    state, found = built.init(), []
    for step in range(3):
        state, metrics = built.chunk(state, built.feed.data(step, 1), 1)
        found += [float(metrics["loss"]), float(metrics["gradient_norm"])]
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, built.abstract)
    return [*found, float(built.evaluate(state, "validation")["loss"])]


MESHES = [
    "data:8",
    "fsdp:8",
    "data:4,tensor:2",
    "data:2,fsdp:2,tensor:2",
    "sequence:8",
    "data:2,sequence:4",
    "fsdp:2,sequence:2,tensor:2",
]


RING = {"collective-permute": 14, "all-gather": 0}


@pytest.mark.parametrize("variant", ["plain", "modern"])
@pytest.mark.parametrize("mesh", MESHES)
def test_the_loss_is_that_of_one_device(mesh, variant):
    np.testing.assert_allclose(losses(mesh, variant), losses("data:1", variant), rtol=2e-5)


def test_zero_changes_where_alone():
    np.testing.assert_allclose(losses("data:8", zero=True), losses("data:1"), rtol=2e-5)


ALL = "data:2,fsdp:2,tensor:2"


@pytest.mark.parametrize(
    "mesh, fields, in_layers, outside",
    [
        # The gradients of a layer, and of the rest.
        ("data:8", {}, {"all-gather": 0, "all-reduce": 1}, {"all-gather": 0, "all-reduce": 1}),
        # Each of a layer's four matrices is gathered forward and again backward, and the two embeddings once.
        ("fsdp:8", {}, {"all-gather": 8, "all-reduce": 1}, {"all-gather": 2, "all-reduce": 1}),
        # Sums after attention and the MLP, forward and backward, and of the layer's gradients over data. Of the logits
        # each device's likeliest are gathered, for the accuracy: numbers and places.
        ("data:4,tensor:2", {}, {"all-gather": 0, "all-reduce": 5}, {"all-gather": 2}),
        (ALL, {}, {"all-gather": 8, "all-reduce": 5}, {"all-gather": 4}),
        # A layer at a time too where a flag says how they lie.
        (ALL, {"placement": "layers/up/kernel$=-+fsdp+tensor"}, {"all-gather": 8}, {"all-gather": 4}),
        # Keys and values go round once forward, and once backward with their gradients: 2 + 4 from the first block,
        # 2 + 4 in loops over further ones, and the gradients' 2 from the last. No activations are gathered, but once a
        # step the gradient of the learned positions, (T, width). A sum over data and sequence is one after the other.
        ("sequence:8", {}, RING | {"all-reduce": 1}, {"all-gather": 1, "all-reduce": 1}),
        ("data:2,sequence:4", {}, RING | {"all-reduce": 2}, {"all-gather": 1, "all-reduce": 2}),
        ("fsdp:2,sequence:2,tensor:2", {}, {"all-gather": 8}, {"all-gather": 5}),
        # Each of the parameters that are not small, which are updated in parts.
        ("data:8", {"zero": True}, {"all-gather": 0}, {"all-gather": 5}),
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
    assert {kind: rest[kind] for kind in outside} == outside
    assert not {"all-to-all", *(() if "sequence" in mesh else ("collective-permute",))} & {*layers, *rest}
    assert not rest["collective-permute"]


@pytest.mark.parametrize(
    "changes, mesh, message",
    [
        ({"length": 31}, "sequence:8", "a length of 31 does not divide over sequence = 8 devices: 24 or 32 would"),
        ({"length": 7}, "sequence:8", "a length of 7 does not divide over sequence = 8 devices: 8 would"),
        ({"positions": "alibi"}, "data:4,sequence:2", "no place for a bias, as alibi is: choose learned or rotary"),
        ({"dropout": 0.1}, "data:4,sequence:2", "no place for dropout: set it to 0, or leave sequence out"),
    ],
    ids=str,
)
def test_what_a_sequence_axis_refuses(changes, mesh, message):
    with pytest.raises(UserError, match=message) as error:
        built = compiled(mesh, MODEL._replace(**changes))
        built.chunk.lower(built.abstract, built.feed.data(0, 1), 1)
    assert "\n" not in str(error.value)


def test_rows_beyond_the_vocabulary_let_the_logits_be_divided():
    mesh = "data:4,tensor:2"
    np.testing.assert_allclose(losses(mesh, "padded"), losses("data:1", "odd"), rtol=2e-5)
    built = compiled(mesh, VARIANTS["padded"])
    found = built.chunk.lower(built.abstract, built.feed.data(0, 1), 1).compile().as_text()
    assert "f32[4,32,33]" in found and "f32[4,32,66]" not in found  # of 66 logits each device has a half
    assert not re.findall(r"= f32\[[\d,]*(?:33|66)[\d,]*\]\S* all-gather(?:-start)?\(", found)


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
