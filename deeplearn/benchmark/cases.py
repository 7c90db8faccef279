"""What is measured: a table of workloads, and arrays of the right shape for each.

Nothing here imports JAX or PyTorch: each contender runs in a process that holds its own framework only.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from deeplearn.errors import unknown

LEARNING_RATE = 0.001  # of Adam, everywhere
PREPARED = 64  # batches that lie ready for a peer, which goes round them

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """One workload; every contender trains it in float32 with Adam.

    Fields:
      about: what it is, for people.
      model: the architecture's name in the table MODELS of each contender.
      batch_size: examples in a step.
      examples: size of the training set.
      data: `count -> {name: (count, ...)}`, the same examples for the same count.
      max_pooling: whether the model pools by the maximum.
    """

    about: str
    model: str
    batch_size: int
    examples: int
    data: Callable[[int], Arrays]
    max_pooling: bool = False


def images(shape: tuple[int, int, int], count: int, classes: int = 10) -> Arrays:
    """uint8 images (count, H, W, C), each its class's pattern and noise, and their labels (count,).

    A tenth of the labels are drawn anew, so that no network reaches a loss of zero, where gradients underflow
    and a CPU slows down.

    >>> {name: (array.shape, array.dtype.name) for name, array in images((8, 8, 3), 5).items()}
    {'image': ((5, 8, 8, 3), 'uint8'), 'label': ((5,), 'int32')}
    """
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 192, (classes, *shape), np.uint8)
    labels = rng.integers(0, classes, count, np.int32)
    pixels = patterns[labels]  # (count, H, W, C)
    pixels += rng.integers(0, 64, pixels.shape, np.uint8)
    redrawn = rng.integers(0, classes, count, np.int32)
    return {"image": pixels, "label": np.where(rng.random(count) < 0.1, redrawn, labels)}


def sequences(length: int, features: int, count: int) -> Arrays:
    """Noisy sines (count, length, features), and the next value of the first feature (count, 1), float32.

    >>> {name: array.shape for name, array in sequences(10, 3, 5).items()}
    {'inputs': (5, 10, 3), 'targets': (5, 1)}
    """
    rng = np.random.default_rng(0)
    time = np.arange(length + 1, dtype=np.float32)[:, None]  # (length + 1, 1)
    frequency = rng.uniform(0.2, 1.2, (count, 1, features)).astype(np.float32)
    phase = rng.uniform(0.0, 2 * np.pi, (count, 1, features)).astype(np.float32)
    values = np.sin(frequency * time + phase)  # (count, length + 1, features)
    values += 0.05 * rng.standard_normal(values.shape, np.float32)
    return {"inputs": values[:, :-1], "targets": values[:, -1, :1]}


def texts(vocabulary: int, length: int, count: int) -> Arrays:
    """Windows (count, length + 1) uint8 of tokens, each drawn by the one before it.

    >>> {name: (array.shape, array.dtype.name) for name, array in texts(65, 8, 5).items()}
    {'tokens': ((5, 9), 'uint8')}
    """
    rng = np.random.default_rng(0)
    follows = rng.integers(0, vocabulary, (vocabulary, 4), np.uint8)
    tokens = rng.integers(0, vocabulary, (count, length + 1), np.uint8)
    for t in range(length):
        tokens[:, t + 1] = follows[tokens[:, t], tokens[:, t + 1] % 4]
    return {"tokens": tokens}


def prepared(case: Case) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches (inputs, targets) that a peer finds ready: float32, pixels already in [-1, 1]; or int32 tokens."""
    arrays = case.data(min(PREPARED * case.batch_size, case.examples))
    if "tokens" in arrays:
        tokens = arrays["tokens"].astype(np.int32)
        arrays = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    inputs, targets = arrays.values()
    for start in range(0, len(inputs) - case.batch_size + 1, case.batch_size):
        rows = slice(start, start + case.batch_size)
        x = inputs[rows]
        yield (x / np.float32(127.5) - 1 if x.dtype == np.uint8 else x), targets[rows]


mnist, cifar10 = partial(images, (28, 28, 1)), partial(images, (32, 32, 3))
short, long = partial(sequences, 10, 1), partial(sequences, 128, 256)
characters = partial(texts, 65, 64)

MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

CASES = {
    "mnist_cnn_64": Case("the MNIST CNN, batch 64", "cnn", 64, 54_000, mnist, True),
    "mnist_cnn_256": Case("the MNIST CNN, batch 256", "cnn", 256, 54_000, mnist, True),
    "sequence_rnn": Case("a tanh RNN of 32 over 10 steps, batch 32", "rnn", 32, 700, short),
    "lstm": Case("an LSTM of 256 over 128 steps of 256, batch 64", "lstm", 64, 1024, long),
    "cifar10_transformer": Case("a ViT of 4 layers, 128 wide, batch 64", "transformer", 64, 45_000, cifar10),
    "resnet20": Case("a ResNet-20 on 32 x 32, batch 128", "resnet", 128, 45_000, cifar10),
    "mobilenet": Case("a MobileNet on 64 x 64, batch 32", "mobilenet", 32, 8_192, partial(images, (64, 64, 3))),
    "shakespeare_gpt": Case("a GPT of 4 layers, 128 wide, 64 characters, batch 12", "gpt", 12, 8_192, characters),
}


def select(text: str, options) -> list[str]:
    """The names in a list such as `lstm,resnet20`, all of `options` for an empty one.

    Raises UserError for a name that there is not.

    >>> select("lstm", CASES)
    ['lstm']
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(options)
    for name in names:
        if name not in options:
            raise unknown("case", name, options)
    return names
