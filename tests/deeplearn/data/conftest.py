"""Tiny TFDS directories, and a user cache that is not the user's."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "deeplearn"


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def images_and_labels(size, seed=0, shape=(4, 5, 3), classes=3):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (size, *shape)).astype(np.uint8), random.randint(0, classes, size)


@pytest.fixture
def prepared(data_dir):
    """The data set "tiny" (40 training, 10 test images) under `data_dir`: its directory."""
    return prepare_tiny(data_dir, {"train": images_and_labels(40), "test": images_and_labels(10, seed=1)})


def prepare_tiny(data_dir, splits, name="Tiny", version="1.0.0"):
    from pathlib import Path

    import tensorflow_datasets as tfds

    from deeplearn.data.builders import LabelledImages

    class Builder(LabelledImages, skip_registration=True):
        VERSION = tfds.core.Version(version)
        IMAGE_SHAPE = next(iter(splits.values()))[0].shape[1:]
        CLASSES = ("a", "b", "c")
        HOMEPAGE = "https://example.org"

        def _read(self, dl_manager):
            return splits

    Builder.name = name.lower()
    Builder.__doc__ = "A tiny data set."
    builder = Builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
