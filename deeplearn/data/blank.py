"""Data sets of the right shapes with nothing in them, to compile a program where its data are not.

Only those that are known here by name; of others the examples themselves have to be read.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import jax
import numpy as np

from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data, hold_out

# Examples for training and for the test, shape of an image, classes.
IMAGES = {
    "digits": (1437, 360, (8, 8, 1), 10),
    "mnist": (60_000, 10_000, (28, 28, 1), 10),
    "fashion_mnist": (60_000, 10_000, (28, 28, 1), 10),
    "cifar10": (50_000, 10_000, (32, 32, 3), 10),
}
# Characters that there are, and in the three splits.
TEXTS = {"tiny_shakespeare": (65, (1_003_854, 55_770, 55_770))}
CORPUS = 2**20  # examples of a text in other tokens, which stands for one that is not held in memory

_instead: ContextVar[bool] = ContextVar("blank", default=False)


@dataclasses.dataclass(frozen=True)
class Blank:
    """A source of zeros, of this spec."""

    spec: Mapping[str, jax.ShapeDtypeStruct]
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return {name: np.zeros((len(indices), *x.shape), x.dtype) for name, x in self.spec.items()}


@contextlib.contextmanager
def instead() -> Iterator[None]:
    """Herein data sets that are known by name are blank, and nothing of them is read.

    >>> from deeplearn.data import datasets
    >>> with instead():
    ...     datasets.load("cifar10").spec["image"].shape
    (32, 32, 3)
    """
    token = _instead.set(True)
    try:
        yield
    finally:
        _instead.reset(token)


def images(name: str, validation: float) -> Data | None:
    """The images of this name if they are to be blank and are known."""
    if not _instead.get() or name not in IMAGES:
        return None
    train, test, shape, classes = IMAGES[name]
    sizes = (*map(len, hold_out(train, validation)), test)
    label = lambda n: np.broadcast_to(np.int32(0), (n,))  # noqa: E731
    splits = (Arrays({"image": np.broadcast_to(np.uint8(0), (n, *shape)), "label": label(n)}) for n in sizes)
    return Data(name, *splits, tuple(map(str, range(classes))))


def windows(name: str, length: int, margin: int, tokenizer) -> Data | None:
    """The text of this name in windows, as `text.load`, if it is to be blank and is known."""
    characters = tokenizer is None or tokenizer.name.startswith("characters")
    if not _instead.get() or (characters and name not in TEXTS):
        return None
    if not characters:
        size = jax.ShapeDtypeStruct(
            (length + 1 + margin,), np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.int32
        )
        return Data(name, *(Blank({"tokens": size}, CORPUS),) * 3)
    margins = (margin, 0, 0)
    shapes = (((n - 1 - more) // length, length + 1 + more) for n, more in zip(TEXTS[name][1], margins, strict=True))
    return Data(name, *(Arrays({"tokens": np.broadcast_to(np.uint8(0), shape)}) for shape in shapes))


def vocabulary(name: str) -> str | None:
    """As many characters as the text of this name has, if it is to be blank and is known."""
    return "".join(map(chr, range(TEXTS[name][0]))) if _instead.get() and name in TEXTS else None


def wanted() -> bool:
    return _instead.get()
