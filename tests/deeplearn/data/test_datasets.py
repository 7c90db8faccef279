import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from deeplearn.data import datasets
from deeplearn.data.sources import Arrays, Subset
from deeplearn.data.splits import SPLITS, hold_out
from deeplearn.errors import UserError


def pairs(source):
    batch = source.__getitems__(np.arange(len(source)))
    return [(image.tobytes(), int(label)) for image, label in zip(batch["image"], batch["label"], strict=True)]


def test_splits_are_the_prepared_ones(prepared, data_dir):
    data = datasets.load("tiny", data_dir=data_dir, validation=0.25)
    records = datasets._open("tiny", prepared)
    assert [len(data.split(split)) for split in SPLITS] == [30, 10, 10]
    assert all(isinstance(data.split(split), Arrays) for split in SPLITS)
    train = pairs(records["train"])
    for split, rows in zip(("train", "validation"), hold_out(40, 0.25), strict=True):
        assert pairs(data.split(split)) == [train[row] for row in rows]
    assert pairs(data.test) == pairs(records["test"])
    assert data.name == "tiny" and data.classes == ("a", "b", "c")
    image, label = data.spec["image"], data.spec["label"]
    assert (image.shape, image.dtype, label.shape, label.dtype) == ((4, 5, 3), np.uint8, (), np.int32)


def test_large_sets_stay_on_disk_and_hold_the_same(prepared, data_dir, monkeypatch):
    small = datasets.load("tiny", data_dir=data_dir)
    for cache in prepared.glob("*.arrays"):
        cache.unlink()
    monkeypatch.setattr(datasets, "IN_MEMORY", 40 * 60)
    large = datasets.load("tiny", data_dir=data_dir)
    assert isinstance(large.train, Subset) and not list(prepared.glob("*.arrays"))
    assert large.classes == small.classes and large.spec == small.spec
    for split in SPLITS:
        assert pairs(large.split(split)) == pairs(small.split(split))


def test_decoded_once(prepared, data_dir, monkeypatch):
    first = datasets.load("tiny", data_dir=data_dir)
    monkeypatch.setattr(datasets, "_open", None)
    again = datasets.load("tiny", data_dir=data_dir, validation=0.5)
    assert pairs(again.test) == pairs(first.test) and again.classes == first.classes
    assert len(again.validation) == 20


def test_a_damaged_cache_is_made_again(prepared, data_dir, caplog):
    first = datasets.load("tiny", data_dir=data_dir)
    (cache,) = prepared.glob("*.arrays")
    os.truncate(cache, 100)
    with caplog.at_level(logging.WARNING):
        again = datasets.load("tiny", data_dir=data_dir)
    assert f"{cache} is damaged" in caplog.text
    assert pairs(again.train) == pairs(first.train)


def test_a_cache_of_other_data_is_not_used(prepare, data_dir, user_cache):
    """The same name and version, prepared anew with more examples, in a directory that is read-only."""
    for size in (40, 50):
        folder = prepare(train=size, test=10)
        folder.chmod(0o555)
        assert len(datasets.load("tiny", data_dir=data_dir, validation=0.5).train) == size // 2
        assert not list(folder.glob("*.arrays"))
        folder.rename(data_dir / "elsewhere") if size == 40 else None
    assert len(list(user_cache.glob("tiny-1.0.0-*.arrays"))) == 2


def test_the_newest_version_is_read(prepare, data_dir):
    for version, size in (("1.9.0", 10), ("1.10.0", 20), ("1.2.0", 30)):
        prepare(version=version, train=size, test=4)
    assert len(datasets.load("tiny", data_dir=data_dir, validation=0.5).train) == 10


def test_the_user_s_cache_is_the_second_place(prepare, data_dir, user_cache):
    prepare(train=20, test=4)
    (user_cache / "tfds").mkdir(parents=True)
    (data_dir / "tiny").rename(user_cache / "tfds" / "tiny")
    assert len(datasets.load("tiny", data_dir=data_dir, validation=0.5).train) == 10
    prepare(train=40, test=4)
    assert len(datasets.load("tiny", data_dir=data_dir, validation=0.5).train) == 20


def test_the_environment_says_where(prepared, data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(datasets.load("tiny").test) == 10


def test_digits_need_no_directory_that_can_be_written(tmp_path, user_cache):
    read_only = tmp_path / "read_only"
    read_only.mkdir()
    read_only.chmod(0o555)
    assert len(datasets.load("digits", data_dir=read_only).test) == 360
    assert (user_cache / "tfds" / "digits" / "1.0.0").exists() and not os.listdir(read_only)


@pytest.mark.parametrize("splits, size", [({"validation": 6}, 6), ({"validation": 6, "test": 8}, 8)])
def test_validation_stands_in_for_an_absent_test(prepare, data_dir, splits, size):
    prepare(train=20, **splits)
    assert len(datasets.load("tiny", data_dir=data_dir).test) == size


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def of_another_size(features):
    features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = ["-1", "-1", "3"]


MISTAKES = {
    "no such feature": (
        "features.json",
        lambda features: features["featuresDict"]["features"].pop("label"),
        "tiny has the features image; an image and a label are needed",
    ),
    "sizes differ": ("features.json", of_another_size, "tiny: its images differ in size"),
    "another format": (
        "dataset_info.json",
        lambda info: info.update(fileFormat="tfrecord"),
        'is in the format tfrecord; prepare it again with file_format="array_record"',
    ),
    "no training split": (
        "dataset_info.json",
        lambda info: info["splits"].pop(0),
        "tiny: the train split in .* is empty",
    ),
    "empty split": (
        "dataset_info.json",
        lambda info: info["splits"][0].update(shardLengths=["0"]),
        "tiny: the train split in .* is empty",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_prepared_set_that_does_not_fit(prepared, data_dir, mistake):
    file, change, message = MISTAKES[mistake]
    edit(prepared / file, change)
    with pytest.raises(UserError, match=message) as raised:
        datasets.load("tiny", data_dir=data_dir)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_descriptions(prepared, data_dir, file):
    (prepared / file).write_text("{")
    with pytest.raises(UserError, match="tiny: cannot read .*1.0.0"):
        datasets.load("tiny", data_dir=data_dir)


def test_images_of_another_shape_than_expected(prepared, data_dir):
    assert datasets.load("tiny", data_dir=data_dir, image_shape=(4, 5, 3))
    with pytest.raises(UserError, match=r"tiny: images are of shape \(4, 5, 3\), but \(28, 28, 1\) is expected"):
        datasets.load("tiny", data_dir=data_dir, image_shape=(28, 28, 1))


@pytest.mark.parametrize(
    "name, message",
    [
        ("mnits", "unknown data set 'mnits'; did you mean mnist"),
        ("tinny", "unknown data set 'tinny'; did you mean tiny?"),
        ("xyzzy", "unknown data set 'xyzzy'; there are: cifar10, digits, fashion_mnist, mnist, tiny, tiny_shakespeare"),
    ],
)
def test_unknown_names(prepared, data_dir, name, message):
    with pytest.raises(UserError) as raised:
        datasets.load(name, data_dir=data_dir)
    assert str(raised.value).startswith(message)


def test_a_data_directory_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="the data directory .*gone does not exist"):
        datasets.load("tiny", data_dir=tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


COLD = """
import sys
import jax
from deeplearn.data import augment, datasets, order, sources, splits, synthetic, text
assert not {"tensorflow_datasets", "grain", "sklearn", "PIL"} & sys.modules.keys()
assert len(datasets.load("digits", data_dir=sys.argv[1]).test) == 360
for cache in datasets.Path(sys.argv[1]).rglob("*.arrays"):
    cache.rename(sys.argv[2])
datasets.IN_MEMORY = 0
records = datasets.load("digits", data_dir=sys.argv[1]).train
assert next(sources.stream(records, jax.random.key(0), 4))["image"].shape == (4, 8, 8, 1)
datasets.Path(sys.argv[2]).rename(cache)
"""
WARM = """
import sys
from deeplearn.data import datasets
assert len(datasets.load("digits", data_dir=sys.argv[1]).test) == 360
assert not {"tensorflow_datasets", "grain", "sklearn", "PIL"} & sys.modules.keys()
"""


def test_no_tensorflow_ever_and_nothing_heavy_before_it_is_needed(data_dir, tmp_path):
    """Where TensorFlow is installed, too: here is one that cannot be imported."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    for script in (COLD, WARM):
        command = [sys.executable, "-c", script, data_dir, tmp_path / "kept.arrays"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})


DATA = os.environ.get("TFDS_DATA_DIR", "")
MNIST_TEST_LABELS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    "name, train, test, labels",
    [
        ("mnist", 60_000, [10_000], MNIST_TEST_LABELS),
        ("fashion_mnist", 60_000, [10_000], [1000] * 10),
        ("cifar10", 50_000, [10_000, 1000], None),
    ],
)
def test_the_real_ones(name, train, test, labels):
    if not os.path.isdir(os.path.join(DATA, name)):
        pytest.skip(f"{name} is not in TFDS_DATA_DIR")
    opened = datasets._open(name, datasets.prepared(name, DATA, None))
    assert len(opened["train"]) == train and len(opened["test"]) in test
    counts = np.zeros(10, int)
    for start in range(0, len(opened["test"]), 1000):
        batch = opened["test"].__getitems__(range(start, start + 1000))
        counts += np.bincount(batch["label"], minlength=10)
    assert labels is None or counts.tolist() == labels
