import os
import shutil

import jax
import numpy as np
import pytest

from deeplearn.data import datasets, order
from deeplearn.data.sources import Arrays, Records, Subset, stream
from deeplearn.errors import UserError

KEY = jax.random.key(3)
SIZE = 23
ARRAYS = Arrays({"x": np.arange(2 * SIZE).reshape(SIZE, 2), "y": np.arange(SIZE) % 5})


def opened(prepared):
    return datasets._open("tiny", prepared)


def test_subset_reads_rows_of_its_source():
    rows = np.array([7, 3, 20])
    subset = Subset(ARRAYS, rows)
    assert len(subset) == 3
    np.testing.assert_array_equal(subset.__getitems__([2, 0])["y"], rows[[2, 0]] % 5)


def test_records_are_the_images_that_were_written(prepared):
    records = opened(prepared)["train"]
    batch = records.__getitems__(np.array([5, 0, 39]))
    assert batch["image"].shape == (3, 4, 5, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    one = records.records[39]
    np.testing.assert_array_equal(batch["image"][2], one["image"])
    assert batch["label"][2] == one["label"]


@pytest.mark.parametrize("start_step", [0, 5])
def test_stream_sees_what_the_device_sees(start_step):
    """Batches of 6 from 23 examples: they straddle epochs."""
    rows = np.asarray(order.chunk_indices(KEY, start_step, 10, 6, SIZE))
    batches = list(stream(ARRAYS, KEY, 6, start_step=start_step, stop_step=start_step + 10, prefetch=3))
    assert len(batches) == 10
    for name, array in ARRAYS.arrays.items():
        np.testing.assert_array_equal(np.stack([batch[name] for batch in batches]), array[rows])


def test_stream_of_records_sees_what_the_device_sees(prepared):
    records = opened(prepared)["train"]
    arrays = records.__getitems__(range(len(records)))
    rows = np.asarray(order.chunk_indices(KEY, 2, 3, 16, len(records)))
    for batch, row in zip(stream(records, KEY, 16, start_step=2), rows, strict=False):
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], arrays[name][row])


class Recording:
    """A source that remembers what was read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return SIZE

    def __getitems__(self, indices):
        self.read += indices.tolist()
        return ARRAYS.__getitems__(indices)


def test_each_process_reads_only_its_part_of_each_batch():
    steps, batch_size, processes = 4, 6, 3
    sources = [Recording() for _ in range(processes)]
    parts = []
    for i, source in enumerate(sources):
        batches = stream(source, KEY, batch_size, stop_step=steps, rows=np.arange(2 * i, 2 * i + 2))
        parts.append(np.stack([batch["x"] for batch in batches]))
    rows = np.asarray(order.chunk_indices(KEY, 0, steps, batch_size, SIZE))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), ARRAYS.arrays["x"][rows])
    for i, source in enumerate(sources):
        assert sorted(source.read) == sorted(rows[:, 2 * i : 2 * i + 2].ravel().tolist())


class Faulty:
    """Records whose file is damaged from an example on, of the second file."""

    def __init__(self, start):
        self.start = start

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index >= self.start:
            raise RuntimeError("hash mismatch\nmore")
        return {"image": np.zeros((2, 2, 1), np.uint8), "label": 0}

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def records_of(records):
    files = [("first.array_record", 12), ("second.array_record", 8)]
    return Records("x train", records, jax.ShapeDtypeStruct((2, 2, 1), np.uint8), ("a", "b"), files)


class Pixels:
    """Examples whose only pixel is their index, over a hundred."""

    def __len__(self):
        return 200

    def __getitems__(self, indices):
        return [{"image": np.full((2, 2, 1), index / 100, np.float32), "label": 0} for index in indices]


def test_floating_pixels_are_checked_as_they_are_read():
    image = jax.ShapeDtypeStruct((2, 2, 1), np.float32)
    source = Records("x train", Pixels(), image, ("a", "b"), [("only.array_record", 200)])
    assert source.__getitems__([0, 100])["image"].max() == 1
    with pytest.raises(UserError, match="^x train: image 101 has a pixel of 1.01, outside 0 to 1; prepare the data"):
        source.__getitems__([100, 101, 150])


def test_a_damaged_record_names_its_file():
    source = records_of(Faulty(15))
    assert len(source.__getitems__([3, 14])["label"]) == 2
    with pytest.raises(UserError, match=r"^x train: cannot read example 16 from second\.array_record \(hash"):
        source.__getitems__([3, 16, 2])
    with pytest.raises(UserError, match=r"^x train: cannot read example 12 from second\.array_record \(hash"):
        records_of(Faulty(12)).__getitems__([11, 12])
    with pytest.raises(UserError, match=r"second\.array_record"):
        list(stream(source, KEY, 10, stop_step=3))


def example(label=0, shape=(2, 2, 1)):
    return {"image": np.zeros(shape, np.uint8), "label": label}


class Listed(list):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (example(label=2), "x train: example 4 has label 2, outside 0 to 1"),
        (example(label=-1), "x train: example 4 has label -1, outside 0 to 1"),
        (example(shape=(2, 3, 1)), r"x train: image 4 has shape \(2, 3, 1\), not \(2, 2, 1\)"),
    ],
)
def test_wrong_examples_are_named(wrong, message):
    source = records_of(Listed([example()] * 4 + [wrong]))
    assert len(source.__getitems__([0, 3])["label"]) == 2
    with pytest.raises(UserError, match=message):
        source.__getitems__([1, 4])


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "directory gone": lambda path: shutil.rmtree(path.parent),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "altered": lambda path: path.write_bytes(b"x" * path.stat().st_size),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(prepared, damage):
    records = opened(prepared)["test"]
    path = next(prepared.glob("*test*"))
    DAMAGE[damage](path)
    with pytest.raises(UserError) as raised:
        next(stream(records, KEY, 4))
    assert str(raised.value).startswith("tiny test: cannot read example") and str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
