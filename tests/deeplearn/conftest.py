"""Tiny TFDS directories."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def prepare(data_dir):
    """prepare(train=40, test=10): the directory of a data set "tiny" with so many random images of 3 classes."""

    import tensorflow_datasets as tfds

    from deeplearn.data.builders import LabelledImages

    def prepare(name="tiny", version="1.0.0", shape=(4, 5, 3), **sizes):
        random = np.random.RandomState(0)
        splits = {
            split: (random.randint(0, 256, (size, *shape)).astype(np.uint8), random.randint(0, 3, size))
            for split, size in sizes.items()
        }

        class Tiny(LabelledImages, skip_registration=True):
            """A tiny data set."""

            VERSION = tfds.core.Version(version)
            IMAGE_SHAPE = shape
            CLASSES = ("a", "b", "c")
            HOMEPAGE = "https://example.org"

            def _read(self, dl_manager):
                return splits

        Tiny.name = name
        builder = Tiny(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_dir)

    return prepare
