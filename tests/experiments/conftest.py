"""Every experiment, on small random data of the right shape."""

import numpy as np
import pytest

from deeplearn import experiment
from deeplearn.data import datasets, text, tokenizers
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


def random_text(name, *, length, tokenizer=None, margin=0, **_):
    if length > 512:  # a recipe as it is, with batches of hundreds: nothing is learnt from it
        source = Arrays({"tokens": np.broadcast_to(np.uint8(0), (2048, length + 1 + margin))})
        return Data(name, source, source, source)

    def split(size, seed, margin=0):
        tokens = np.random.RandomState(seed).randint(0, 65, size * length + 1 + margin)
        return Arrays({"tokens": text.windows(tokens.astype(np.uint8), length, margin)})

    return Data(name, split(64, 0, margin), split(20, 1), split(20, 2))


def tokenizer(name, dataset):
    """Of as many tokens as there really are; nothing is encoded."""
    return tokenizers.Tokenizer(name, {"characters": 65, "gpt2": 50_257}[name], None, None)


def build(name, **fields):
    """The experiment with some fields set, and far smaller where it is none for a laptop."""
    module = experiment.load(name)
    config = module.get_config()
    if name == "gpt2":
        config.update({"length": 16, "width": 32, "depth": 2, "heads": 2, "accumulate": 1, "precision": "float32"})
    if name == "gpt3":
        module.SIZES["125m"] = module.SIZES["125m"]._replace(depth=2, width=32, heads=2)
        config.update({"length": 16, "accumulate": 1, "precision": "float32"})
    config.update(fields)
    return module.build(config)


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(datasets, "load", random_images)
    monkeypatch.setattr(text, "load", random_text)
    monkeypatch.setattr(tokenizers, "load", tokenizer)
    monkeypatch.setattr(text, "vocabulary", lambda name: "".join(map(chr, range(65))))
