"""Tiny TFDS directories, and directories of runs and studies that a test may spoil."""

import shutil
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


@pytest.fixture(scope="session")
def intact(tmp_path_factory):
    """Directories of runs and studies, not to be changed, and what they hold."""
    from tests.deeplearn import directories
    from tests.deeplearn.spoiling import SAME

    root = tmp_path_factory.mktemp("intact")
    source = directories.project(root / "project")
    directories.train(root / "a", source)
    directories.train(root / "b", source, seed=SAME + 1)
    directories.compare(root / "s", directories.declare())
    directories.compare(root / "t", directories.declare(workloads={"digits_mlp": {"epochs": 5.0}}))
    shutil.rmtree(root / "project")
    return (
        root,
        directories.plain(directories.read_run(root / "a")),
        directories.plain(directories.read_study(root / "s")),
    )


@pytest.fixture
def places(intact):
    """The Places of a test. The paths are always the same, because a run's directory holds that of its experiment."""
    from tests.deeplearn import directories
    from tests.deeplearn.spoiling import Places

    root = intact[0]
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(root / "project", ignore_errors=True)
    for name in "as":
        shutil.copytree(root / name, work / name)
    source = directories.project(root / "project")
    return Places(work / "a", root / "b", work / "s", root / "t", root / "project", source)
