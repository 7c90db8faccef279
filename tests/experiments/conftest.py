"""Every experiment, on small random data of the right shape."""

import numpy as np
import pytest

from deeplearn.data import datasets, text
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import HOME

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
EXPERIMENTS = sorted(path.stem for path in HOME.glob("[a-z]*.py"))


def random_images(name, **_):
    def split(size, seed):
        random = np.random.RandomState(seed)
        images = random.randint(0, 256, (size, *SHAPES[name])).astype(np.uint8)
        return Arrays({"image": images, "label": random.randint(0, 10, size).astype(np.int32)})

    return Data(name, split(64, 0), split(20, 1), split(20, 2), tuple("0123456789"))


def random_text(name, *, length, **_):
    def split(size, seed):
        tokens = np.random.RandomState(seed).randint(0, 65, size * length + 1)
        return Arrays({"tokens": text.windows(tokens.astype(np.uint8), length)})

    return Data(name, split(64, 0), split(20, 1), split(20, 2))


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(datasets, "load", random_images)
    monkeypatch.setattr(text, "load", random_text)
    monkeypatch.setattr(text, "vocabulary", lambda name: "".join(map(chr, range(65))))
