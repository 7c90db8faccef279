"""Every experiment, on small random data of the right shape."""

import numpy as np
import pytest

from deeplearn.data import datasets
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


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(datasets, "load", random_images)
