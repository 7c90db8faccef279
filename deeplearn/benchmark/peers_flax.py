"""The models as Flax's own layers make them, trained as Flax's examples do: a jitted step in a Python loop.

Source: the examples of flax (mnist, imagenet, seq2seq), https://github.com/google/flax/tree/main/examples
"""

from functools import partial
from itertools import cycle

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

from deeplearn.benchmark.cases import LEARNING_RATE, MOBILENET, Case, prepared
from deeplearn.benchmark.contender import Contender


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        for channels in (32, 64):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


class Recurrent(nn.Module):
    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(1)(nn.RNN(self.cell)(x)[:, -1])


class Block(nn.Module):
    """A layer of a Transformer, normalised first."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(128)(nn.gelu(nn.Dense(512)(y)))


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(128, (4, 4), strides=(4, 4))(x)  # (B, 8, 8, 128)
        x = x.reshape(x.shape[0], -1, 128)  # (B, 64, 128)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, 64, 128))
        for _ in range(4):
            x = Block()(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))


class GPT(nn.Module):
    @nn.compact
    def __call__(self, tokens, train: bool):
        embedding = nn.Embed(65, 128, embedding_init=nn.initializers.normal(0.02))
        positions = self.param("positions", nn.initializers.normal(0.02), (64, 128))
        x, mask = embedding(tokens) + positions, nn.make_causal_mask(tokens)
        for _ in range(4):
            y = nn.LayerNorm(use_bias=False)(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4, use_bias=False)(y, mask=mask)
            y = nn.LayerNorm(use_bias=False)(x)
            y = nn.gelu(nn.Dense(512, use_bias=False)(y))
            x = x + nn.Dense(128, use_bias=False)(y)
        return embedding.attend(nn.LayerNorm(use_bias=False)(x))


class ResidualBlock(nn.Module):
    """Where the shape changes, the shortcut skips pixels and pads channels with zeros (He et al. 2015)."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(nn.Conv, self.channels, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        y = nn.relu(norm()(conv((3, 3), strides=self.stride)(x)))
        y = norm()(conv((3, 3))(y))
        missing = self.channels - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing // 2)))
        return nn.relu(x + y)


class ResNet20(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for channels, stride in (
            (16, 1),
            (16, 1),
            (16, 1),
            (32, 2),
            (32, 1),
            (32, 1),
            (64, 2),
            (64, 1),
            (64, 1),
        ):
            x = ResidualBlock(channels, stride)(x, train)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        def convolution(x, channels, kernel, stride=1, groups=1):
            x = nn.Conv(channels, (kernel, kernel), stride, use_bias=False, feature_group_count=groups)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

        x = convolution(x, 32, 3, 2)
        for channels, stride in MOBILENET:
            x = convolution(x, x.shape[-1], 3, stride, groups=x.shape[-1])
            x = convolution(x, channels, 1)
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class State(train_state.TrainState):
    batch_stats: dict


def loss_function(outputs, targets):
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()
    return jnp.square(outputs - targets).mean()


@jax.jit
def train_step(state: State, inputs, targets):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, updates = state.apply_fn(variables, inputs, train=True, mutable=["batch_stats"])
        return loss_function(outputs, targets), updates.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


MODELS = {
    "cnn": CNN(),
    "rnn": Recurrent(nn.SimpleCell(32)),
    "lstm": Recurrent(nn.OptimizedLSTMCell(256)),
    "transformer": VisionTransformer(),
    "resnet": ResNet20(),
    "mobilenet": MobileNet(),
    "gpt": GPT(),
}


def candidates(case: Case) -> list[Contender]:
    """One step after another, the loss fetched after the last."""
    model = MODELS[case.model]
    batches = jax.device_put(list(prepared(case)))
    variables = model.init(jax.random.key(0), batches[0][0], train=False)
    state = State.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=optax.adam(LEARNING_RATE),
    )
    batches = cycle(batches)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, loss = train_step(state, *next(batches))
        jax.block_until_ready(state)
        return float(loss)

    return [Contender(run, optax.tree.size(state.params))]
