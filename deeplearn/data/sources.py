"""Where examples are read from: a source gives any of its examples by their indices, stacked.

A source that is in memory (`Arrays`) goes to the device whole. A larger one (`Records`) stays on disk and is
streamed: `stream` reads, step after step, exactly the batches that a device-resident run would see.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from deeplearn.data import order
from deeplearn.errors import UserError


class Source(Protocol):
    """Examples with random access: `len(source)`, and `__getitems__(indices)`, a dict of stacked arrays."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Examples in memory: arrays of one leading dimension.

    >>> source = Arrays({"inputs": np.zeros((5, 3)), "targets": np.arange(5)})
    >>> len(source), source.__getitems__([4, 0])["targets"].tolist()
    (5, [4, 0])
    """

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return {name: array[np.asarray(indices)] for name, array in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class Records:
    """Labelled images in a prepared TFDS directory, decoded whenever they are read.

    Raises UserError for a file that is gone or damaged, an image of another shape, a label or a pixel out of range.

    Fields:
      name: what messages call it, such as "mnist train".
      records: the split's `tfds.data_source`, of examples with an image and a label.
      image: shape and dtype of every image.
      classes: the classes' names.
      files: path and number of examples of each file, in the order of the examples.
      num_bytes: size of all encoded examples in bytes; 0 if it is unknown.
    """

    name: str
    records: Any
    image: jax.ShapeDtypeStruct
    classes: tuple[str, ...]
    files: Sequence[tuple[str, int]]
    num_bytes: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        indices = [int(index) for index in indices]
        images = np.empty((len(indices), *self.image.shape), self.image.dtype)
        labels = np.empty(len(indices), np.int32)
        for row, (index, example) in enumerate(zip(indices, self._read(indices), strict=True)):
            if example["image"].shape != self.image.shape:
                shapes = f"{example['image'].shape}, not {self.image.shape}"
                raise UserError(f"{self.name}: image {index} has shape {shapes}; prepare the data set in one size")
            images[row], labels[row] = example["image"], example["label"]
        check_labels(self.name, labels, len(self.classes), indices)
        check_pixels(self.name, images, indices)
        return {"image": images, "label": labels}

    def _read(self, indices: list[int]) -> list[dict[str, Any]]:
        try:
            return self.records.__getitems__(indices)
        except Exception as error:  # whatever the reader or the decoder makes of a damaged file
            path, index = self._first_unreadable(indices)
            cause = str(error).partition("\n")[0] or type(error).__name__
            remedy = "restore the file, or delete its directory and prepare the data set again"
            raise UserError(f"{self.name}: cannot read example {index} from {path} ({cause}); {remedy}") from error

    def _first_unreadable(self, indices: list[int]) -> tuple[str, int]:
        """Path and index of the first of these examples that cannot be read."""
        for index in indices:
            try:
                self.records[index]
            except Exception:
                break
        ends = np.cumsum([count for _, count in self.files])
        return self.files[int(np.searchsorted(ends, index, side="right"))][0], index


@dataclasses.dataclass(frozen=True)
class Subset:
    """The examples of another source at some `rows`, (n,) int, without reading them."""

    source: Source
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return self.source.__getitems__(self.rows[np.asarray(indices)])


def check_labels(name: str, labels: np.ndarray, classes: int, indices: Sequence[int] | None = None) -> None:
    """Raise UserError, naming the first label that is not in [0, classes) and its example's index."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        row = int(wrong[0])
        index = row if indices is None else indices[row]
        limits = f"outside 0 to {classes - 1}"
        raise UserError(f"{name}: example {index} has label {labels[row]}, {limits}; correct the data or `classes`")


def check_pixels(name: str, images: np.ndarray, indices: Sequence[int]) -> None:
    """Raise UserError, naming the first example of (N, H, W, C) floating images with a pixel outside of [0, 1]."""
    if np.issubdtype(images.dtype, np.floating):
        wrong = ~((images >= 0) & (images <= 1))
        if wrong.any():
            row, *_ = place = tuple(np.argwhere(wrong)[0])
            limits = "outside 0 to 1; prepare the data set again, in that range or as uint8"
            raise UserError(f"{name}: image {indices[row]} has a pixel of {images[place]:g}, {limits}")


def check_tokens(name: str, tokens: np.ndarray, vocabulary: int) -> None:
    """Raise UserError, naming the first example of (N, T) tokens that has one outside of [0, vocabulary)."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocabulary):
        row, place = np.argwhere((tokens < 0) | (tokens >= vocabulary))[0]
        limits = f"outside 0 to {vocabulary - 1}; use the tokenizer of the model"
        raise UserError(f"{name}: example {row} has token {tokens[row, place]}, {limits}")


def stream(
    source: Source,
    key: jax.Array,
    batch_size: int,
    *,
    start_step: int = 0,
    stop_step: int = 2**31 - 1,
    rows: np.ndarray | None = None,
    threads: int = 8,
    prefetch: int = 16,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches from step `start_step` on, read by grain's threads while earlier ones are in use.

    The batch of step n holds the examples that `order.chunk_indices` gives for step n, wherever the stream
    started, so there is no state to save. Of several processes each reads only its own rows of it: a dict of
    (len(rows), ...) arrays.

    Args:
      source: examples.
      key: the key of their order.
      batch_size: examples in a batch, over all processes.
      start_step: the first batch.
      stop_step: the batch after the last.
      rows: which rows of each batch to read, (n,) int; by default all.
      threads: threads that read, each a batch at a time.
      prefetch: batches that are read ahead.

    >>> source = Arrays({"x": np.arange(6)})
    >>> batches = [batch["x"] for batch in stream(source, jax.random.key(0), 2, stop_step=3)]
    >>> sorted(np.concatenate(batches).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    import grain

    rows = np.arange(batch_size) if rows is None else rows

    def read(step: int) -> dict[str, np.ndarray]:
        return source.__getitems__(order.indices(key, step * batch_size + rows, len(source)))

    options = grain.ReadOptions(num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(start_step, stop_step).map(read).to_iter_dataset(options))
