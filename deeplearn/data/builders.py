"""TFDS builders that need no TensorFlow: digits (embedded), MNIST, Fashion-MNIST, CIFAR-10, tiny Shakespeare.

They write what TFDS's own builders of these names and versions write, as ArrayRecord. Images are handed to
TFDS as PNG bytes, and files are unpacked here, because TFDS would ask TensorFlow for both.
"""

import contextlib
import gzip
import inspect
import io
import pickle
import sys
import tarfile
from pathlib import Path, PurePath

import numpy as np
import PIL.Image
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo, compute_url_info
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from deeplearn.data import integrity
from deeplearn.errors import UserError


class LabelledImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Labelled images of one size: a subclass says which, and reads them as {split: (images, labels)}."""

    IMAGE_SHAPE: tuple[int, int, int]
    CLASSES: tuple[str, ...]
    HOMEPAGE: str

    def _read(self, dl_manager) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        raise NotImplementedError

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.IMAGE_SHAPE),
            "label": tfds.features.ClassLabel(names=self.CLASSES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.cleandoc(self.__doc__),
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*arrays) for split, arrays in self._read(dl_manager).items()}

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": png(image), "label": int(label)}


class Digits(LabelledImages):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries: nothing to download.

    Pixels are scaled from 0..16 to 0..255. One fifth is the test set, evenly over the classes: the examples
    are permuted by `RandomState(0)`, sorted stably by label, and the first of every five is taken.
    """

    VERSION = tfds.core.Version("1.0.0")
    IMAGE_SHAPE = (8, 8, 1)
    CLASSES = tuple("0123456789")
    HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"

    def _read(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # (N, 8, 8, 1)
        rows = np.random.RandomState(0).permutation(len(images))
        rows = rows[np.argsort(digits.target[rows], kind="stable")]
        test = np.arange(len(rows)) % 5 == 0
        parts = {"train": np.sort(rows[~test]), "test": np.sort(rows[test])}
        return {split: (images[part], digits.target[part]) for split, part in parts.items()}


class Mnist(LabelledImages, skip_registration=True):
    """MNIST: 60,000 and 10,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes and Burges, 1998)."""

    VERSION = tfds.core.Version("3.0.1")
    IMAGE_SHAPE = (28, 28, 1)
    CLASSES = tuple("0123456789")
    HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: the four gzipped idx files."
    FILES = {
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    }
    MIRRORS = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )

    def _read(self, dl_manager):
        paths = fetch(dl_manager, sum(self.FILES.values(), ()), self.MIRRORS, self.url_infos)
        return {
            split: (read_idx(paths[images])[..., None], read_idx(paths[labels]))  # (N, 28, 28, 1), (N,)
            for split, (images, labels) in self.FILES.items()
        }


class FashionMnist(Mnist, skip_registration=True):
    """Fashion-MNIST: 60,000 and 10,000 photographs of clothes, 28 x 28 pixels (Xiao, Rasul, Vollgraf,
    2017)."""

    CLASSES = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
    MIRRORS = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )


class Cifar10(LabelledImages, skip_registration=True):
    """CIFAR-10: 50,000 and 10,000 colour photographs of 32 x 32 pixels in ten classes (Krizhevsky, 2009)."""

    VERSION = tfds.core.Version("3.0.2")
    IMAGE_SHAPE = (32, 32, 3)
    CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: cifar-10-binary.tar.gz or cifar-10-python.tar.gz."
    FILES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
    MIRRORS = (
        "https://www.cs.toronto.edu/~kriz/",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    )

    def _read(self, dl_manager):
        absent = missing(dl_manager, self.FILES)
        file = next((file for file in self.FILES if file not in absent), self.FILES[0])
        return read_cifar10(fetch(dl_manager, [file], self.MIRRORS, self.url_infos)[file])


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """40,000 lines of Shakespeare's plays (Karpathy, 2015), a text a split: 90, 5 and 5 % of the characters."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: input.txt."
    FILE = "input.txt"
    MIRRORS = ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.cleandoc(self.__doc__),
            homepage="https://github.com/karpathy/char-rnn",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        )

    def _read(self, dl_manager) -> dict[str, str]:
        path = fetch(dl_manager, [self.FILE], self.MIRRORS, self.url_infos)[self.FILE]
        text = Path(path).read_text(encoding="utf-8")
        train = int(0.9 * len(text))
        validation = train + (len(text) - train) // 2
        return {"train": text[:train], "validation": text[train:validation], "test": text[validation:]}

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, text) for split, text in self._read(dl_manager).items()}

    def _generate_examples(self, split, text):
        yield split, {"text": text}


BUILDERS = {builder.name: builder for builder in (Digits, Mnist, FashionMnist, Cifar10, TinyShakespeare)}


def prepare(name: str, data_dir: Path, manual_dir: Path | None = None) -> Path:
    """Write the data set and its checksums into its TFDS directory under `data_dir`, and return that directory.

    Upstream files that lie in `manual_dir`, by default `data_dir/name`, are not downloaded. All are checked against
    `checksums.tsv`. Raises UserError, which says what to put where, for a file that cannot be had or is not the right
    one, and for a directory that cannot be written.
    """
    manual_dir = manual_dir or data_dir / name
    folder = data_dir / name / str(BUILDERS[name].VERSION)
    existed = folder.exists()
    if existed and not (folder / "dataset_info.json").exists():
        raise integrity.damaged(name, folder, "dataset_info.json is missing")
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, force_checksums_validation=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the command, not to TFDS
            builder.download_and_prepare(download_config=config)
    except NonMatchingChecksumError as error:
        artifact = str(error).splitlines()[0].rstrip(":")
        raise UserError(f"{name}: {artifact}; delete that file and start again") from error
    except tfds.download.DownloadError as error:
        raise UserError(f"{name}: {error}; put the files into {manual_dir} and start again") from error
    except OSError as error:
        if error.filename and Path(error.filename).parent == manual_dir:
            raise integrity.unreadable(name, error.filename, error) from error
        if not (folder / "dataset_info.json").exists():  # else another process was faster
            remedy = "make room there or choose another data_dir"
            raise UserError(f"{name}: cannot write {builder.data_dir} ({error}); {remedy}") from error
    if not existed:
        integrity.record(folder)
    return folder


def fetch(dl_manager, files, mirrors, infos: dict[str, UrlInfo]) -> dict[str, Path]:
    """The path of each file: in the manual directory, or downloaded from the first mirror that has the right one.

    TFDS keeps what it has downloaded, and does not verify it when it is used again: it is verified here.

    Args:
      dl_manager: TFDS's download manager.
      files: their names.
      mirrors: addresses in front of a name.
      infos: size and SHA-256 by address.
    """
    absent = missing(dl_manager, files)
    failures, wrong = [], None
    for mirror in mirrors:
        try:
            if absent:
                # TFDS itself would wait minutes for a host that does not answer.
                with requests.get(mirror + absent[0], stream=True, timeout=10) as response:
                    response.raise_for_status()
            paths = dl_manager.download({file: mirror + file for file in files})
            for file, path in paths.items():
                if compute_url_info(path) != infos[mirror + file]:
                    raise NonMatchingChecksumError(f"Artifact {mirror + file}, kept in {path}, has wrong checksum")
            return paths
        except (requests.RequestException, tfds.download.DownloadError) as error:
            failures.append(f"{mirror}: {type(error).__name__}")
        except NonMatchingChecksumError as error:
            wrong = error
    raise wrong or tfds.download.DownloadError(f"cannot download {', '.join(absent)} ({', '.join(failures)})")


def missing(dl_manager, files) -> list[str]:
    """Those of the files that are not in the manual directory."""
    try:
        folder = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's, for a directory that is empty or absent
        return list(files)
    return [file for file in files if not (folder / file).exists()]


def png(image: np.ndarray) -> io.BytesIO:
    """A PNG file, in memory, of an (H, W, 1) or (H, W, 3) uint8 image."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped file of MNIST's idx format: zeros, type, rank, big-endian sizes, bytes."""
    with gzip.open(path) as file:
        content = file.read()
    kind, rank = content[:3], content[3]
    start = 4 + 4 * rank
    shape = np.frombuffer(content[4:start], ">u4")
    if kind != b"\0\0\x08" or len(content) != start + shape.prod():
        raise UserError(f"{path} is not a whole idx file of bytes; download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar10(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """CIFAR-10's images (N, 32, 32, 3) and labels (N,) by split, from its binary or its Python archive.

    Unpickles the Python archive: only for a file whose checksum has been verified.
    """
    batches = {"train": [], "test": []}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            name = PurePath(member.name)
            if not name.name.startswith(("data_batch", "test_batch")):
                continue
            content = archive.extractfile(member).read()
            if name.suffix == ".bin":
                rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                labels, pixels = rows[:, 0], rows[:, 1:]
            else:
                batch = pickle.loads(content, encoding="latin1")
                labels, pixels = np.asarray(batch["labels"], np.uint8), batch["data"]
            images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
            batches["test" if name.name.startswith("test") else "train"].append((images, labels))
    return {split: tuple(map(np.concatenate, zip(*parts, strict=True))) for split, parts in batches.items()}
