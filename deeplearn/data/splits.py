"""A data set: its three splits, how they are kept apart, and what must hold of them."""

from typing import NamedTuple

import jax
import numpy as np

from deeplearn.data.sources import Arrays, Source, check_labels, check_tokens
from deeplearn.errors import UserError, unknown


class Data(NamedTuple):
    """A data set, ready to learn from; no example is in two of its splits.

    Fields:
      name: its name.
      train, validation, test: the splits.
      classes: the classes' names, in the order of the labels; () where nothing is classified.
      version: the version of the prepared data, such as "1.0.0"; "" if there is none.
    """

    name: str
    train: Source
    validation: Source
    test: Source
    classes: tuple[str, ...] = ()
    version: str = ""

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of one example, without the batch dimension."""
        example = self.train.__getitems__([0])
        return {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in example.items()}

    def split(self, name: str) -> Source:
        """The split of this name; UserError for a name that is none."""
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        return getattr(self, name)


SPLITS = ("train", "validation", "test")


def hold_out(size: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows that stay for training and the rows held out for validation, each ascending, of `range(size)`.

    Held out are the first `round(fraction * size)` of `RandomState(0).permutation(size)`: a rule that depends on
    nothing else, neither the run's seed nor the versions installed, so every run is validated on the same examples.

    >>> hold_out(10, 0.2)
    (array([0, 1, 3, 4, 5, 6, 7, 9]), array([2, 8]))
    """
    count = round(fraction * size)
    if not 0 < count < size:
        remedy = "choose a fraction that leaves both parts some"
        raise UserError(f"a validation fraction of {fraction} of {size} examples holds out {count}; {remedy}")
    rows = np.random.RandomState(0).permutation(size)
    return np.sort(rows[count:]), np.sort(rows[:count])


def check(data: Data, image_shape: tuple[int, ...] | None = None, vocabulary: int | None = None) -> Data:
    """`data` itself, if no split is empty, labels are classes, tokens exist, and images are of the expected shape.

    JAX looks up what is nearest for an index out of range, and says nothing: it has to be refused before. Of what is
    read from a disk while a run trains, the labels are checked as they are read.

    Args:
      data: what to check.
      image_shape: that of each image; None for any.
      vocabulary: how many tokens exist; None for no check.

    Raises:
      UserError: names the split and the first wrong example.
    """
    for split in SPLITS:
        source = data.split(split)
        if len(source) == 0:
            raise UserError(f"{data.name}: the {split} split is empty; it needs more examples")
        arrays = source.arrays if isinstance(source, Arrays) else {}
        if data.classes and "label" in arrays:
            check_labels(f"{data.name} {split}", arrays["label"], len(data.classes))
        if vocabulary is not None and "tokens" in arrays:
            check_tokens(f"{data.name} {split}", arrays["tokens"], vocabulary)
    if image_shape is not None and data.spec["image"].shape != tuple(image_shape):
        shapes = f"of shape {data.spec['image'].shape}, but {tuple(image_shape)} is expected"
        raise UserError(f"{data.name}: images are {shapes}; choose a data set or a model that fits")
    return data
