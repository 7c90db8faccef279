import os
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from deeplearn.data import blank, datasets
from deeplearn.data.fingerprint import fingerprint
from deeplearn.data.sources import Arrays, Records, Subset
from deeplearn.data.splits import SPLITS, Data
from deeplearn.errors import UserError

RANDOM = np.random.RandomState(0)
IMAGE = RANDOM.randint(0, 256, (30, 4, 3, 1)).astype(np.uint8)
LABEL = RANDOM.randint(0, 3, 30).astype(np.int32)


def arrays(image=IMAGE, label=LABEL, **more):
    return Arrays({"image": image, "label": label, **more})


def of(train=None, name="x", classes=("a", "b", "c"), version="1.0.0", validation=None):
    train = arrays() if train is None else train
    return fingerprint(Data(name, train, validation or arrays(), arrays(), classes, version))


def test_what_it_holds():
    result = of()
    assert list(result) == ["name", "version", "classes", *SPLITS]
    assert result["name"] == "x" and result["version"] == "1.0.0" and result["classes"].startswith("3 names, sha256 ")
    prefix, digest = result["train"].rsplit(" ", 1)
    assert prefix == "30 examples, sha256" and len(digest) == 16 and int(digest, 16)
    assert of(classes=())["classes"] == "" and of(version="")["version"] == ""


def edited(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def swapped(array):
    return array[[1, 0, *range(2, len(array))]]


OTHERS = {
    "one pixel": lambda: of(arrays(image=edited(IMAGE, (29, 3, 2, 0), IMAGE[29, 3, 2, 0] ^ 1))),
    "one label": lambda: of(arrays(label=edited(LABEL, 15, LABEL[15] + 1))),
    "the order": lambda: of(arrays(swapped(IMAGE), swapped(LABEL))),
    "the dtype": lambda: of(arrays(label=LABEL.astype(np.uint32))),
    "the byte order": lambda: of(arrays(label=LABEL.astype(">i4"))),
    "the shape": lambda: of(arrays(image=IMAGE.reshape(30, 3, 4, 1))),
    "a field's name": lambda: of(Arrays({"picture": IMAGE, "label": LABEL})),
    "a field more": lambda: of(arrays(weight=LABEL)),
    "an example less": lambda: of(arrays(IMAGE[:-1], LABEL[:-1])),
    "a class's name": lambda: of(classes=("a", "b", "d")),
    "the classes' order": lambda: of(classes=("b", "a", "c")),
    "the name": lambda: of(name="y"),
    "the version": lambda: of(version="1.0.1"),
    "the other split": lambda: of(validation=arrays(label=LABEL + 1)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_data_have_another_fingerprint(case):
    assert OTHERS[case]() != of()


TURNED = arrays(np.roll(IMAGE, -1, axis=0)[::-1], np.roll(LABEL, -1)[::-1])  # to be turned back, then rolled
SAME = {
    "a copy": lambda: arrays(IMAGE.copy(), LABEL.copy()),
    "fields in another order": lambda: Arrays({"label": LABEL, "image": IMAGE}),
    "Fortran order": lambda: arrays(np.asfortranarray(IMAGE)),
    "a view with gaps": lambda: arrays(np.stack([IMAGE, IMAGE], axis=1)[:, 0], np.stack([LABEL, LABEL], axis=1)[:, 1]),
    "read-only": lambda: arrays(np.frombuffer(IMAGE.tobytes(), np.uint8).reshape(IMAGE.shape)),
    "on a device": lambda: arrays(jax.numpy.asarray(IMAGE), jax.numpy.asarray(LABEL)),
    "an axis of size 1 without a stride": lambda: arrays(IMAGE[..., 0][..., None]),
    "a subset": lambda: Subset(arrays(swapped(IMAGE), swapped(LABEL)), np.array([1, 0, *range(2, 30)])),
    "a subset of a subset": lambda: Subset(Subset(TURNED, np.arange(30)[::-1]), np.roll(np.arange(30), 1)),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_examples_have_the_same_fingerprint(case):
    assert of(SAME[case]()) == of()


@pytest.mark.parametrize("block", [1, 7, 12, 100])
def test_it_does_not_depend_on_the_size_of_a_block(monkeypatch, block):
    expected = of(), of(Subset(arrays(), np.arange(5)))
    monkeypatch.setattr("deeplearn.data.fingerprint._BLOCK", block)
    assert (of(), of(Subset(arrays(), np.arange(5)))) == expected


@pytest.mark.parametrize("array", [np.zeros((4, 0, 2)), np.array(["a", "b"]), np.zeros(3, ml_dtypes.bfloat16)])
def test_unusual_arrays(array):
    assert of(Arrays({"x": array})) == of(Arrays({"x": array.copy()}))


def test_dtypes_of_one_size_differ():
    assert of(Arrays({"x": np.zeros(3, ml_dtypes.bfloat16)})) != of(Arrays({"x": np.zeros(3, np.float16)}))


def test_objects_have_none():
    with pytest.raises(UserError, match="x train: the field 'label' holds Python objects; make it an array of"):
        of(arrays(label=np.array([None] * 30)))


# arrays that are not in memory


def test_broadcast_arrays_are_not_materialized():
    """These are 2^50 bytes."""

    def broadcast(value, size=2**50):
        return of(Arrays({"x": np.broadcast_to(np.uint8(value), (2**20, size // 2**20))}))

    assert broadcast(0) == broadcast(0)
    assert len({str(broadcast(0)), str(broadcast(1)), str(broadcast(0, 2**40))}) == 3


def test_blank_data():
    with blank.instead():
        first, other = (datasets.load("mnist", validation=fraction) for fraction in (0.1, 0.2))
        again = datasets.load("mnist")
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    spec = {"tokens": jax.ShapeDtypeStruct((2**40,), np.uint16)}
    sources = [blank.Blank(spec, 5), blank.Blank(spec, 6), Subset(blank.Blank(spec, 6), np.arange(5))]
    results = [of(source)["train"] for source in sources]
    assert results[0] == results[2] != results[1]


class Numbers:
    """A user's own source, which counts what is read of it."""

    def __init__(self, size, wrong=None):
        self.size, self.wrong, self.read = size, wrong, 0

    def __len__(self):
        return self.size

    def __getitems__(self, indices):
        self.read += len(indices)
        return {"x": np.array([-1 if index == self.wrong else index for index in indices])}


def test_a_source_of_the_user_s_is_sampled():
    source = Numbers(10**9)
    assert of(source) == of(Numbers(10**9)) and source.read == 64
    for other in (Numbers(10**9 + 1), Numbers(10**9, wrong=0), Numbers(10**9, wrong=10**9 - 1)):
        assert of(other) != of(source)
    for wrong in range(5):  # all of a small one
        assert of(Numbers(5, wrong)) != of(Numbers(5))
    assert of(Subset(Numbers(100), np.arange(50))) != of(Subset(Numbers(100), np.arange(50)[::-1]))
    rows = np.arange(1000)
    assert of(Subset(source, edited(rows, 1, 5000))) != of(Subset(source, rows))  # the second of them is no sample


class Named(Numbers):
    def fingerprint(self):
        return f"numbers below {self.size}"


def test_a_source_with_a_fingerprint_of_its_own():
    source = Named(7)
    assert of(source)["train"] == "7 examples, numbers below 7" and source.read == 0
    parts = [of(Subset(Named(size), np.arange(5)))["train"] for size in (7, 7, 8)]
    assert parts[0] == parts[1] != parts[2]


# prepared data


def test_cached_or_not(prepared, data_dir):
    results = []
    for _ in range(3):
        results.append(fingerprint(datasets.load("tiny", data_dir=data_dir)))
        if len(results) == 2:
            next(prepared.glob("*.arrays")).unlink()
    assert results[0] == results[1] == results[2] and results[0]["version"] == "1.0.0"
    assert fingerprint(datasets.load("tiny", data_dir=data_dir, validation=0.2)) != results[0]


@pytest.fixture
def on_disk(prepared, data_dir, monkeypatch):
    """on_disk(data_dir): the fingerprint of the data, which stay on disk."""
    monkeypatch.setattr(datasets, "IN_MEMORY", 0)
    return lambda folder=data_dir, **kwargs: fingerprint(datasets.load("tiny", data_dir=folder, **kwargs))


def test_records_on_disk(on_disk, prepared, data_dir, tmp_path):
    """Equal wherever the directory lies and whenever it was written."""
    expected = on_disk()
    shutil.copytree(data_dir, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
    assert on_disk(tmp_path / "copy") == on_disk() == expected
    assert on_disk(validation=0.2)["train"] != expected["train"]


def other_name(folder):
    (folder / "label.labels.txt").write_text("a\nb\nd\n")


def other_description(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("A tiny data set", "A data set"))


def other_records(folder):
    (path,) = folder.glob("*-train.*")
    content = bytearray(path.read_bytes())
    content[5] ^= 1  # no reader looks at this one
    path.write_bytes(content)


@pytest.mark.parametrize("change", [other_name, other_description, other_records])
def test_other_records_on_disk(on_disk, prepared, change):
    expected = on_disk()
    change(prepared)
    assert on_disk()["train"] != expected["train"]


@pytest.mark.parametrize("place, seen", [(0, True), (9, True), (10, False), (89, False), (90, True), (99, True)])
def test_both_ends_of_a_file_of_records_are_read(tmp_path, monkeypatch, place, seen):
    monkeypatch.setattr("deeplearn.data.fingerprint.ENDS", 10)
    spec, path = jax.ShapeDtypeStruct((2, 2, 1), np.uint8), tmp_path / "x.array_record"

    def of_file(content):
        path.write_bytes(content)
        return of(Records("x", Zeros(), spec, ("a",), [(str(path), 3)]))["train"]

    assert (of_file(bytes(place) + b"1" + bytes(99 - place)) != of_file(bytes(100))) == seen


class Zeros:
    """What TFDS makes of a file."""

    def __len__(self):
        return 3

    def __getitems__(self, indices):
        return [{"image": np.zeros((2, 2, 1), np.uint8), "label": 0} for _ in indices]


def test_other_examples_on_disk(on_disk, prepare, data_dir, tmp_path):
    expected = on_disk()
    data_dir.rename(tmp_path / "before")
    prepare(train=40, test=10, validation=3)
    assert on_disk()["train"] != expected["train"]


def test_records_that_are_gone(prepared, data_dir, monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY", 0)
    data = datasets.load("tiny", data_dir=data_dir)
    (path,) = prepared.glob("*-train.*")
    path.unlink()
    with pytest.raises(UserError, match=f"tiny train: cannot read {path} .*; check that it exists"):
        fingerprint(data)


SCRIPT = """
import numpy as np
from deeplearn.data.fingerprint import fingerprint
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
source = Arrays({"x": np.arange(1000).reshape(10, 100), "y": np.linspace(0, 1, 10)})
print(fingerprint(Data("numbers", source, source, source, ("a", "b"))))
"""


def test_another_process_computes_the_same():
    source = Arrays({"x": np.arange(1000).reshape(10, 100), "y": np.linspace(0, 1, 10)})
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=env, capture_output=True, text=True).stdout
    assert output.strip() == str(fingerprint(Data("numbers", source, source, source, ("a", "b"))))


def test_it_does_not_change_from_release_to_release():
    """A run that was started before must be able to go on. Change these only with a reason to refuse every old run."""
    x = np.arange(6, dtype=np.int32).reshape(3, 2)
    source = Arrays({"x": x, "y": np.array([0.5, 1, 2], np.float32)})
    result = fingerprint(Data("numbers", source, source, source, ("a", "b"), "2.0.0"))
    assert result["classes"] == "2 names, sha256 3e0529f999136e8e"
    assert result["train"] == "3 examples, sha256 d5c6f9f4b5aa6360"


def test_versions_are_filled_in(prepared, data_dir):
    assert datasets.load("tiny", data_dir=data_dir).version == prepared.name
    assert Data("x", None, None, None).version == ""
