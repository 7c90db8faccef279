"""The boxes of small networks of every kind: which layers, in which order, how large, and what flows where."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deeplearn.pictures.fold import Box, fold
from deeplearn.pictures.trace import trace


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(nn.Dense(128)(x)))
        x = nn.Dropout(0.0, deterministic=not train)(x)  # does nothing, and is not drawn
        return nn.Dense(10)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        for features in (32, 64):
            x = nn.max_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(128, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="head")(x)


class Block(nn.Module):
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(self.features, (3, 3), (self.stride,) * 2)(x))
        y = nn.Conv(self.features, (3, 3))(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), (self.stride,) * 2, name="project")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x))
        for features, stride in ((8, 1), (8, 1), (8, 1), (16, 2)):
            x = block(features, stride)(x)
        return nn.Dense(10)(x.mean((1, 2)))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(y, y)
        y = nn.gelu(nn.Dense(64)(nn.LayerNorm()(x)))
        return x + nn.Dense(32)(y), None


class Transformer(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(32, (4, 4), (4, 4), name="patches")(x)
        x = x.reshape(x.shape[0], -1, 32)
        x = x + self.param("position", nn.initializers.normal(), (1, 64, 32))
        if self.scan:
            over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 6}
            x, _ = nn.scan(Encoder, **over)()(x, jnp.zeros(6))
        else:
            for _ in range(6):
                x, _ = Encoder()(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        skips = []
        for _ in range(3):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            skips.append(x)
        for skip in reversed(skips):
            x = jnp.concatenate([nn.relu(nn.Conv(8, (3, 3))(x)), skip], axis=-1)
        return x


class Language(nn.Module):
    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(100, 32)
        return embed.attend(nn.Dense(32)(embed(x)))


class Rnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.RNN(nn.LSTMCell(32))(x)[:, -1])


class Two(nn.Module):
    @nn.compact
    def __call__(self, a, b):
        dense = nn.Dense(16, name="shared")
        return jnp.tanh(dense(a)) * jax.nn.sigmoid(dense(b))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _halve(x, axis):
    return jnp.maximum(*jnp.split(x, 2, axis))


_halve.defvjp(lambda x, axis: (_halve(x, axis), x), lambda axis, x, g: (x,))


def halve(x):
    return _halve(x, 1)


class Functions(nn.Module):
    """Plain functions of every making, and arithmetic that is not worth a box."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(halve(x.astype(jnp.bfloat16)).astype(jnp.float32) * 2 - 1)
        x = self.scaled(nn.leaky_relu(nn.log_softmax(x)))
        return jnp.stack([x, x[:, ::-1]], axis=1)

    def scaled(self, x):
        return nn.gelu(x) * self.param("scale", nn.initializers.ones, (1, x.shape[-1]))


IMAGE = jnp.zeros((1, 32, 32, 3))
NETWORKS = {
    "mlp": (MLP(), (IMAGE,)),
    "cnn": (CNN(), (IMAGE,)),
    "resnet": (ResNet(), (IMAGE,)),
    "resnet, remat": (ResNet(remat="full"), (IMAGE,)),
    "transformer": (Transformer(), (IMAGE,)),
    "transformer, scan": (Transformer(scan=True), (IMAGE,)),
    "u-net": (UNet(), (IMAGE,)),
    "language": (Language(), (jnp.zeros((1, 20), jnp.int32),)),
    "rnn": (Rnn(), (jnp.zeros((1, 10, 1)),)),
    "two inputs": (Two(), (jnp.zeros((1, 8)),) * 2),
    "functions": (Functions(), (jnp.zeros((1, 8)),)),
    "one layer": (nn.Dense(3), (jnp.zeros((1, 8)),)),
    "sequential": (nn.Sequential([nn.Dense(3), nn.tanh] * 4 + [nn.Dense(3)]), (jnp.zeros((1, 3)),)),
}


def look(boxes: list[Box]):
    return [(" ".join(filter(None, (b.label, b.detail))), b.shape, b.parameters, b.inputs) for b in boxes]


EXPECTED = {
    "mlp": [
        ("input", (32, 32, 3), 0, ()),
        ("flatten", (3072,), 0, (0,)),
        ("Dense", (128,), 3072 * 128 + 128, (1,)),
        ("relu", (128,), 0, (2,)),
        ("Dropout 0.2", (128,), 0, (3,)),
        ("Dense", (10,), 1290, (4,)),
    ],
    "cnn": [
        ("input", (32, 32, 3), 0, ()),
        ("Conv 3×3", (32, 32, 32), 896, (0,)),
        ("relu", (32, 32, 32), 0, (1,)),
        ("max_pool", (16, 16, 32), 0, (2,)),
        ("Conv 3×3", (16, 16, 64), 18496, (3,)),
        ("relu", (16, 16, 64), 0, (4,)),
        ("max_pool", (8, 8, 64), 0, (5,)),
        ("flatten", (4096,), 0, (6,)),
        ("Dense", (128,), 524416, (7,)),
        ("relu", (128,), 0, (8,)),
        ("Dense", (10,), 1290, (9,)),
    ],
    "language": [
        ("input", (20,), 0, ()),
        ("Embed", (20, 32), 3200, (0,)),
        ("Dense", (20, 32), 1056, (1,)),
        ("Embed", (20, 100), 0, (2,)),
    ],
    "rnn": [
        ("input", (10, 1), 0, ()),
        ("RNN LSTMCell", (10, 32), 4 * 32 * (1 + 32) + 4 * 32, (0,)),
        ("slice", (32,), 0, (1,)),
        ("Dense", (1,), 33, (2,)),
    ],
    "two inputs": [
        ("input", (8,), 0, ()),
        ("input", (8,), 0, ()),
        ("Dense", (16,), 144, (0,)),
        ("tanh", (16,), 0, (2,)),
        ("Dense", (16,), 0, (1,)),
        ("sigmoid", (16,), 0, (4,)),
        ("×", (16,), 0, (3, 5)),
    ],
    "functions": [
        ("input", (8,), 0, ()),
        ("halve", (4,), 0, (0,)),
        ("silu", (4,), 0, (1,)),
        ("log_softmax", (4,), 0, (2,)),
        ("leaky_relu", (4,), 0, (3,)),
        ("gelu", (4,), 0, (4,)),
        ("×", (4,), 4, (5,)),
        ("slice", (4,), 0, (6,)),
        ("stack", (2, 4), 0, (6, 7)),
    ],
    "one layer": [("input", (8,), 0, ()), ("Dense", (3,), 27, (0,))],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_boxes(name):
    module, inputs = NETWORKS[name]
    assert look(trace(module, *inputs)) == EXPECTED[name]


def test_residual_connections():
    boxes = fold(trace(*NETWORKS["resnet"][:1], IMAGE))
    assert look(boxes)[:10] == [
        ("input", (32, 32, 3), 0, ()),
        ("Conv 3×3", (32, 32, 8), 224, (0,)),
        ("BatchNorm", (32, 32, 8), 16, (1,)),
        ("Conv 3×3", (32, 32, 8), 584, (2,)),
        ("relu", (32, 32, 8), 0, (3,)),
        ("Conv 3×3", (32, 32, 8), 584, (4,)),
        ("+", (32, 32, 8), 0, (2, 5)),
        ("relu", (32, 32, 8), 0, (6,)),
        ("Conv 3×3 / 2", (16, 16, 16), 1168, (7,)),
        ("relu", (16, 16, 16), 0, (8,)),
    ]
    assert look(boxes)[10:] == [
        ("Conv 3×3", (16, 16, 16), 2320, (9,)),
        ("Conv 1×1 / 2", (16, 16, 16), 144, (7,)),
        ("+", (16, 16, 16), 0, (11, 10)),
        ("relu", (16, 16, 16), 0, (12,)),
        ("mean", (16,), 0, (13,)),
        ("Dense", (10,), 170, (14,)),
    ]
    assert [box.repeat for box in boxes] == [1] * 3 + [3] * 5 + [1] * 8
    assert [box.name for box in boxes if box.kind == "layer"][2] == "Block_0/Conv_0"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_in_one_box(name):
    module, inputs = NETWORKS[name]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    for boxes in (trace(module, *inputs), fold(trace(module, *inputs))):
        assert sum(box.parameters * box.repeat for box in boxes) == total


@pytest.mark.parametrize("name", NETWORKS)
def test_data_flows_forwards_to_the_end(name):
    module, inputs = NETWORKS[name]
    boxes = fold(trace(module, *inputs))
    used = {j for box in boxes for j in box.inputs}
    assert used == set(range(len(boxes) - 1))
    assert all(j < i for i, box in enumerate(boxes) for j in box.inputs)
    out = jax.eval_shape(module.apply, jax.eval_shape(module.init, jax.random.key(0), *inputs), *inputs)
    assert boxes[-1].shape == out.shape[1:]


@pytest.mark.parametrize("plain, other", [("resnet", "resnet, remat"), ("transformer", "transformer, scan")])
def test_lifted_modules_look_as_plain_ones(plain, other):
    a, b = (fold(trace(module, *inputs)) for module, inputs in (NETWORKS[plain], NETWORKS[other]))
    assert look(a) == look(b)
    assert [box.repeat for box in a] == [box.repeat for box in b]


def test_blocks_fold():
    boxes = fold(trace(*NETWORKS["transformer"][:1], IMAGE))
    assert [box.label for box in boxes if box.repeat == 6] == [
        "LayerNorm", "MultiHeadDotProductAttention", "+", "LayerNorm", "Dense", "gelu", "Dense", "+",
    ]  # fmt: skip
    assert {box.group for box in boxes if box.repeat == 1} == {0} != {box.group for box in boxes if box.repeat == 6}


def test_what_is_used_from_afar_does_not_fold():
    boxes = trace(*NETWORKS["u-net"][:1], IMAGE)
    assert fold(boxes) == boxes
    assert sum(len(box.inputs) > 1 for box in boxes) == 3


def test_shapes_alone_will_do():
    assert trace(CNN(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)) == trace(CNN(), IMAGE)
