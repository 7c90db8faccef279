import jax
import numpy as np
import pytest
from flax import linen as nn

from deeplearn.config import base_config
from deeplearn.data.sources import Arrays, Subset
from deeplearn.data.splits import Data
from deeplearn.errors import UserError
from deeplearn.experiment import wire
from deeplearn.parallel import cost
from deeplearn.tasks.classification import classification
from deeplearn.training import feed, program


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8, use_bias=False)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))


def data(streamed):
    def split(number, seed):
        random = np.random.RandomState(seed)
        arrays = Arrays(
            {
                "image": random.standard_normal((number, 2, 2, 1)).astype(np.float32),
                "label": random.randint(0, 3, number).astype(np.int32),
            }
        )
        return Subset(arrays, np.arange(number)) if streamed else arrays

    return Data("random", split(90, 0), split(30, 1), split(30, 2), ("a", "b", "c"))


def run(streamed, stops, evaluated=False, **fields):
    config = base_config(**{"batch_size": 16, "steps": 12, "log_every": 6, **fields})
    e = wire(config, classification(Net(), (2, 2, 1), 3), data(streamed))
    compiled = program.build(e)
    state, step = compiled.init(), 0
    for stop in stops:
        state, _ = compiled.chunk(state, compiled.feed.data(step, stop - step), stop - step)
        state = jax.block_until_ready(state)
        step = stop
        if evaluated:
            compiled.evaluate(state, "test")
    return state, compiled.evaluate(state, "test"), compiled.evaluate(state, "train")


@pytest.mark.parametrize("mesh", ["data:1", "data:2,fsdp:2"])
def test_a_streamed_run_is_a_resident_one(mesh):
    """The same batches in the same order, dropout and all; only where the examples lie is different.

    With an average of the parameters, the next batches pass before an evaluation.
    """
    fields = {"mesh": mesh, "seed": 3, "ema": 0.9}
    resident, *of_resident = run(False, (6, 12), **fields)
    streamed, *of_streamed = run(True, (6, 12), **fields)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), resident.params, streamed.params)
    for a, b in zip(of_resident, of_streamed, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


@pytest.mark.parametrize("streamed, given, most", [(False, 12, 6), (True, 12, 12), (True, 5, 5)])
def test_a_chunk_has_no_more_steps_than_batches(streamed, given, most):
    """Beyond them JAX would train on the last batch again and again."""
    e = wire(base_config(batch_size=16, steps=12, log_every=6), classification(Net(), (2, 2, 1), 3), data(streamed))
    built = program.build(e, jax.devices()[:1])
    state, fed = built.init(), built.feed.data(0, given)
    for steps in (most + 1, 100, 0, -1):
        with pytest.raises(UserError, match=f"a chunk has from 1 to {most} steps here, not {steps}: call it again"):
            built.chunk(state, fed, steps)
    with pytest.raises(jax.errors.ConcretizationTypeError):  # what is not known cannot be checked
        jax.jit(lambda steps: built.chunk(state, fed, steps))(3)
    state, _ = built.chunk(state, fed, most)
    assert int(state.step) == most


@pytest.mark.parametrize("streams", [False, True])
def test_what_it_gives_is_known_beforehand(streams):
    """Shapes, dtypes and where it lies, without reading it."""
    e = wire(base_config(batch_size=16, steps=12, mesh="data:4"), classification(Net(), (2, 2, 1), 3), data(streams))
    fed = program.build(e).feed
    same = jax.tree.map(
        lambda x, y: (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding), fed.data(0, 3), fed.abstract(3)
    )
    assert all(jax.tree.leaves(same))


def test_parts_of_a_batch_are_of_every_device():
    """Accumulating gradients exchanges no examples: on each device a part has some of its own."""
    config = base_config(batch_size=64, steps=12, mesh="data:8", accumulate=4)
    built = program.build(wire(config, classification(Net(), (2, 2, 1), 3), data(True)))
    steps = jax.ShapeDtypeStruct((), "int32")
    text = built.chunk.lower(built.abstract, built.feed.abstract(1), steps).compile().as_text()
    assert set(cost.of(text).counts) == {"all-reduce"}


def test_a_stream_goes_on_anywhere():
    """Chunks that do not follow each other, as after an evaluation that looks at training batches."""
    whole, *_ = run(True, (6, 12), mesh="data:1", ema=0.9)
    cut, *_ = run(True, (2, 5, 6, 10, 12), evaluated=True, mesh="data:1", ema=0.9)
    jax.tree.map(np.testing.assert_array_equal, whole.params, cut.params)


def test_a_split_larger_than_a_block(monkeypatch):
    _, test, train = run(True, (6,), mesh="data:1")
    monkeypatch.setattr(feed, "EVALUATE_BLOCK", 16)
    _, in_blocks, train_in_blocks = run(True, (6,), mesh="data:1")
    np.testing.assert_allclose(test["loss"], in_blocks["loss"], rtol=1e-5)
    np.testing.assert_allclose(train["accuracy"], train_in_blocks["accuracy"], rtol=1e-6)
