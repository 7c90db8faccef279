"""Training under the settings of JAX that check, and those that change how it computes."""

import contextlib
import threading
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn import optimizers
from deeplearn.config import base_config
from deeplearn.data import augment
from deeplearn.data.sources import Arrays, Subset
from deeplearn.data.splits import Data
from deeplearn.errors import UserError
from deeplearn.experiment import wire
from deeplearn.layers.attention import SelfAttention
from deeplearn.layers.convolution import Conv
from deeplearn.layers.normalization import BatchNorm
from deeplearn.layers.recurrent import Recurrent
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.parallel import mesh as meshes
from deeplearn.pictures.trace import trace
from deeplearn.tasks import transformations
from deeplearn.tasks.classification import classification
from deeplearn.tasks.language_modelling import language_modelling
from deeplearn.training import loop, program
from kernels.convolution import convolution
from kernels.pooling import max_pool


class Everything(nn.Module):
    """A layer of every kind."""

    dropout: float = 0.1

    @nn.compact
    def __call__(self, x, train=False):
        x = max_pool(nn.relu(BatchNorm()(Conv(4, use_bias=False)(x), train)), (2, 2))
        x = Recurrent(8)(x.reshape(x.shape[0], -1, 4))  # (B, T, 8)
        x = nn.Dropout(self.dropout, deterministic=not train)(SelfAttention(2)(x))
        return nn.Dense(4)(x.mean(axis=1))


def images(streamed=False):
    """Of four classes, of which the last has no example."""

    def split(number, seed):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 3, number).astype(np.int32)
        pictures = (60 * labels[:, None, None, None] + random.integers(0, 60, (number, 6, 6, 1))).astype(np.uint8)
        arrays = Arrays({"image": pictures, "label": labels})
        return Subset(arrays, np.arange(number)) if streamed else arrays

    return Data("bright", split(48, 0), split(15, 1), split(15, 2), tuple("abcd"))


def classifier(dropout=0.1, streamed=False, **fields):
    given = {"batch_size": 8, "steps": 12, "log_every": 4, "eval_every": 6, "accumulate": 2, "ema": 0.9, "l2": 1e-4}
    config = base_config(mesh="data:1", clip_norm=1.0, schedule="cosine(warmup=0.1)", learning_rate=0.03)
    config.update(given | fields)
    task = transformations.preprocess(classification(Everything(dropout), (6, 6, 1), 4), augment.scale(-1, 1))
    task = transformations.augment(task, augment.compose(augment.random_flip, augment.random_crop(1)))
    return wire(config, task, images(streamed))


def writer(dropout=0.1, **fields):
    tokens = np.tile(np.arange(6, dtype=np.uint8), 60)[:352].reshape(32, 11)
    model = GPT(Architecture(6, 8, 16, 2, 2, dropout=dropout, rows_multiple=8))
    config = base_config(mesh="data:1", batch_size=8, steps=12, log_every=4, eval_every=6, learning_rate=0.03)
    config.update(fields)
    data = Data("letters", *(Arrays({"tokens": x}) for x in (tokens, tokens[:8, :9], tokens[:8, :9])))
    return wire(config, language_modelling(model, 8, label_smoothing=0.1), data, model)


class Small(nn.Module):
    """What compiles fast."""

    dropout: float

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm()(nn.Dense(4, use_bias=False)(x.reshape(x.shape[0], -1)), train)
        return nn.Dense(4)(nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x)))


def small(dropout=0.1, streamed=False, **fields):
    config = base_config(**{"batch_size": 8, "steps": 2, "log_every": 1, "eval_every": 2, "mesh": "data:1", **fields})
    task = transformations.preprocess(classification(Small(dropout), (6, 6, 1), 4), augment.scale(-1, 1))
    return wire(config, task, images(streamed))


def train(experiment):
    """The program, the last state on the host, and every number that was logged or evaluated but the time."""
    built, lines = program.build(experiment), []

    def log(step, record):
        lines.append({name: value for name, value in record.items() if name != "seconds"})

    hooks = loop.Hooks(log, lambda *_: True, lambda *_: None)
    state, *_ = loop.train(experiment, built, built.init(), loop.Progress(), hooks, threading.Event())
    values = jax.device_get(built.evaluate(state, "test"))
    return built, jax.device_get((state.params, state.model_state)), lines, values


BUILDS = {
    "classifier": classifier,
    "writer": writer,
    "small": partial(small, steps=12, log_every=4, eval_every=6, learning_rate=0.01),
}


@pytest.fixture(scope="module")
def plain():
    """plain(name, ...): what a run gives as the tests are set."""
    results = {}

    def plain(name, dropout=0.1):
        if (name, dropout) not in results:
            results[name, dropout] = train(BUILDS[name](dropout))
        return results[name, dropout][1:]

    return plain


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def close(found, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)


def another(found, expected):
    """Another run as good: the numbers differ, and the loss falls."""
    (_, lines, values), (_, expected_lines, _) = found, expected
    assert lines[0]["loss"] != expected_lines[0]["loss"] and lines[-1]["loss"] < lines[0]["loss"]
    assert np.isfinite(values["loss"])


@contextlib.contextmanager
def lenient():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@contextlib.contextmanager
def checks():
    """What only checks, together: each has an error of its own."""
    with jax.debug_nans(True), jax.debug_infs(True), jax.transfer_guard("disallow"):
        yield


# The tests run with strict promotion of dtypes and none of ranks, so that these are with every other mode.
MODES = {
    "standard promotion": (lenient, equal, 0.1),
    "debug_nans, debug_infs, transfer_guard": (checks, equal, 0.1),
    "highest matmul precision": (lambda: jax.default_matmul_precision("highest"), close, 0.1),
    "x64": (lambda: jax.enable_x64(True), close, 0.0),  # Flax draws dropout in float64 there
    "rbg": (lambda: jax.default_prng_impl("rbg"), another, 0.1),
    "unsafe_rbg": (lambda: jax.default_prng_impl("unsafe_rbg"), another, 0.1),
    "threefry not partitionable": (lambda: jax.threefry_partitionable(False), another, 0.1),
}
RUNS = [
    ("standard promotion", "writer"),
    ("debug_nans, debug_infs, transfer_guard", "classifier"),
    ("debug_nans, debug_infs, transfer_guard", "writer"),
    ("highest matmul precision", "small"),
    ("x64", "classifier"),
    ("x64", "writer"),
    ("rbg", "small"),
    ("unsafe_rbg", "small"),
    ("threefry not partitionable", "small"),
]


@pytest.mark.parametrize("mode, name", RUNS)
def test_a_run(plain, mode, name):
    context, agrees, dropout = MODES[mode]
    expected = plain(name, dropout)
    with context():
        built, *found = train(BUILDS[name](dropout))
        assert built.chunk.__wrapped__._cache_size() == 1  # a state that came out of a chunk goes into the same program
        assert not wide(built.abstract)
    agrees(tuple(found), expected)


def wide(tree):
    """Paths of the leaves of 64 bits."""
    leaves = jax.tree.leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, x in leaves if x.dtype in (np.float64, np.int64, np.uint64)]


@pytest.mark.parametrize("mesh, streamed", [("data:2", True), ("data:2,fsdp:2,tensor:2", False)])
def test_every_transfer_of_a_run_is_asked_for(mesh, streamed):
    """Also from one device to others, and of what is read while the run goes on."""
    with jax.transfer_guard("disallow"):
        _, _, lines, _ = train(small(streamed=streamed, mesh=mesh, steps=4, ema=0.9))
    assert len(lines) == 4 and np.isfinite(lines[-1]["validation/loss"])


def test_a_run_that_diverges_under_debug_nans_is_an_error_of_jax():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        train(small(optimizer="minibatch_sgd", learning_rate=1e30))


def test_without_jit():
    expected = train(small())[1:]
    with jax.disable_jit():
        found = train(small())[1:]
    close(found, expected)


def test_our_primitives_without_jit():
    """Convolution and pooling are compiled by themselves then, as operations of JAX are."""
    random = np.random.default_rng(0)
    x, w = jnp.float32(random.normal(size=(2, 2, 6, 6, 3))), jnp.float32(random.normal(size=(3, 3, 3, 4)))

    def loss(x, w):
        return max_pool(convolution(x, w), (2, 2)).sum()

    arguments = x[0], w
    expected = jax.value_and_grad(loss, argnums=(0, 1))(*arguments)
    batched = jax.vmap(loss, in_axes=(0, None))(x, w)
    with jax.disable_jit():
        close(jax.value_and_grad(loss, argnums=(0, 1))(*arguments), expected)
        close(jax.vmap(loss, in_axes=(0, None))(x, w), batched)


def test_a_gpt_without_jit():
    """Its layers say how parameters lie on the mesh, which has no meaning for an operation on one device."""
    model = GPT(Architecture(6, 4, 8, 1, 2))
    tokens, mesh = jnp.zeros((1, 4), jnp.int32), meshes.parse("data:1")
    variables = model.init(jax.random.key(0), tokens)
    expected = model.apply(variables, tokens)
    with jax.disable_jit():
        close(meshes.within(mesh, model.apply)(variables, tokens), expected)
        assert [box.label for box in trace(model, tokens)]


def test_without_jit_there_is_one_device():
    said = "jax_disable_jit is for one device, not 2; unset it, or use the mesh data:1"
    with jax.disable_jit(), pytest.raises(UserError, match=said):
        program.build(small(mesh="data:2"))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_no_optimizer_changes_a_type_under_x64(name):
    """A loop of steps would refuse that. Its own float64, as some of Optax have, is steady."""
    with jax.enable_x64(True):
        built = program.build(small(optimizer=name))
        assert not wide((built.abstract.params, built.abstract.model_state))
        state, metrics = jax.eval_shape(built.chunk.__wrapped__, built.abstract, built.feed.abstract(1), jnp.int32(1))
    shapes = partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(state) == shapes(built.abstract)
    assert {x.dtype for x in jax.tree.leaves(metrics)} == {np.dtype("float32")}
