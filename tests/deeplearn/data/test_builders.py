import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import struct
import tarfile
import threading

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo, load_url_infos

from deeplearn.data import builders, datasets, text
from deeplearn.data.splits import SPLITS
from deeplearn.errors import UserError

RANDOM = np.random.RandomState(0)
SIZES = {"train": 12, "test": 5}
DIGITS = {
    split: (RANDOM.randint(0, 256, (size, 28, 28)).astype(np.uint8), RANDOM.randint(0, 10, size).astype(np.uint8))
    for split, size in SIZES.items()
}
PHOTOGRAPHS = {
    "train": (RANDOM.randint(0, 256, (10, 32, 32, 3)).astype(np.uint8), np.arange(10, dtype=np.uint8)),
    "test": (RANDOM.randint(0, 256, (3, 32, 32, 3)).astype(np.uint8), np.array([3, 1, 4], np.uint8)),
}


def idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def mnist_files(content=DIGITS):
    return {
        file: idx(array)
        for split, files in builders.Mnist.FILES.items()
        for file, array in zip(files, content[split], strict=True)
    }


def cifar_binary(images, labels):
    return np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(images), -1)], axis=1).tobytes()


def cifar_pickle(images, labels):
    """As Python 2 and NumPy 1 wrote it."""
    batch = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": labels.tolist()}
    return pickle.dumps(batch, protocol=2).replace(b"numpy._core", b"numpy.core")


def cifar_archive(encode, folder, suffix):
    images, labels = PHOTOGRAPHS["train"]
    members = {f"data_batch_{i + 1}{suffix}": encode(images[2 * i :][:2], labels[2 * i :][:2]) for i in range(5)}
    members |= {f"test_batch{suffix}": encode(*PHOTOGRAPHS["test"]), "readme.html": b"text"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


CIFAR_FILES = {
    "cifar-10-binary.tar.gz": cifar_archive(cifar_binary, "cifar-10-batches-bin", ".bin"),
    "cifar-10-python.tar.gz": cifar_archive(cifar_pickle, "cifar-10-batches-py", ""),
}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A mirror on this machine: its address, and the folder whose files it serves."""
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    thread.join()


@pytest.fixture
def register(monkeypatch):
    """Give a builder these files' checksums, and mirrors that nothing listens at or the given ones."""
    monkeypatch.setenv("NO_PROXY", "*")

    def register(builder, files, mirrors=("http://127.0.0.1:9/", "http://127.0.0.1:9/other/")):
        infos = {
            mirror + file: UrlInfo(tfds.core.utils.Size(len(content)), hashlib.sha256(content).hexdigest(), file)
            for mirror in mirrors
            for file, content in files.items()
        }
        monkeypatch.setattr(builder, "url_infos", infos)
        monkeypatch.setattr(builder, "MIRRORS", mirrors)

    return register


def examples(folder):
    """{split: the set of (image bytes, label)}: TFDS has shuffled them."""
    opened = datasets._open("x", folder)
    batches = {split: records.__getitems__(range(len(records))) for split, records in opened.items()}
    return {split: pairs(batch["image"], batch["label"]) for split, batch in batches.items()}


def pairs(images, labels):
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


# digits


def test_digits_are_scikit_learn_s(data_dir):
    folder = builders.prepare("digits", data_dir)
    got = examples(folder)
    assert {split: len(rows) for split, rows in got.items()} == {"train": 1437, "test": 360}
    digits = sklearn.datasets.load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)
    assert sorted(got["train"] + got["test"]) == pairs(images, digits.target)
    labels = {split: [label for _, label in rows] for split, rows in got.items()}
    for digit in range(10):
        whole = np.sum(digits.target == digit)
        assert abs(labels["test"].count(digit) - whole / 5) < 1


def test_digits_load(data_dir):
    data = datasets.load("digits", data_dir=data_dir)
    assert [len(data.split(split)) for split in SPLITS] == [1293, 144, 360]
    assert data.classes == tuple("0123456789") and data.spec["image"].shape == (8, 8, 1)
    assert data.train.arrays["image"].dtype == np.uint8 and data.train.arrays["label"].dtype == np.int32
    assert (data_dir / "digits" / "1.0.0" / "features.json").exists()


def test_digits_are_a_tfds_data_set(data_dir):
    builders.prepare("digits", data_dir)
    assert len(tfds.data_source("digits", split="test", data_dir=data_dir)) == 360


# files


def test_png_keeps_every_pixel():
    for image in (DIGITS["train"][0][0][..., None], PHOTOGRAPHS["train"][0][0]):
        decoded = np.asarray(PIL.Image.open(builders.png(image)))
        np.testing.assert_array_equal(decoded.reshape(image.shape), image)


@pytest.mark.parametrize("shape", [(7,), (3, 28, 28)])
def test_idx(tmp_path, shape):
    array = RANDOM.randint(0, 256, shape).astype(np.uint8)
    (tmp_path / "x.gz").write_bytes(idx(array))
    np.testing.assert_array_equal(builders.read_idx(tmp_path / "x.gz"), array)


@pytest.mark.parametrize("content", [b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x0d\x01\0\0\0\x01a", b"text"])
def test_idx_of_something_else(tmp_path, content):
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"x\.gz is not a whole idx file"):
        builders.read_idx(tmp_path / "x.gz")


@pytest.mark.parametrize("file", CIFAR_FILES)
def test_cifar10_archives(tmp_path, file):
    write(tmp_path, CIFAR_FILES)
    got = builders.read_cifar10(tmp_path / file)
    for split, (images, labels) in PHOTOGRAPHS.items():
        np.testing.assert_array_equal(got[split][0], images)
        np.testing.assert_array_equal(got[split][1], labels)


# tiny Shakespeare

PLAY = "".join(RANDOM.choice(list("abc \n"), 203)) + "\u00f4"  # 90 % of 204 is no whole number


def test_tiny_shakespeare(data_dir, register):
    """Split as TFDS splits it: 90 % of the characters, half of the rest, what is left."""
    files = {"input.txt": PLAY.encode()}
    register(builders.TinyShakespeare, files)
    write(data_dir / "tiny_shakespeare", files)
    folder = builders.prepare("tiny_shakespeare", data_dir)
    assert folder == data_dir / "tiny_shakespeare" / "1.0.0"
    opened = tfds.builder_from_directory(folder)
    found = {split: opened.as_data_source(split)[0]["text"].decode() for split in SPLITS}
    assert {split: len(part) for split, part in found.items()} == {"train": 183, "validation": 10, "test": 11}
    assert "".join(found[split] for split in SPLITS) == PLAY


def test_tiny_shakespeare_that_cannot_be_had(data_dir, register):
    register(builders.TinyShakespeare, {"input.txt": b""})
    with pytest.raises(UserError) as raised:
        text.load("tiny_shakespeare", length=5, data_dir=data_dir)
    message = str(raised.value)
    assert message.startswith("tiny_shakespeare: cannot download input.txt") and "\n" not in message
    assert f"put the files into {data_dir / 'tiny_shakespeare'} and start again" in message


# preparing


@pytest.mark.parametrize("manual_dir", [None, "elsewhere"])
def test_files_on_disk_need_no_network(data_dir, tmp_path, register, manual_dir):
    register(builders.Mnist, mnist_files())
    manual_dir = manual_dir and tmp_path / manual_dir
    write(manual_dir or data_dir / "mnist", mnist_files())
    folder = builders.prepare("mnist", data_dir, manual_dir)
    assert folder == data_dir / "mnist" / "3.0.1"
    assert examples(folder) == {split: pairs(*arrays) for split, arrays in DIGITS.items()}
    assert "arrays" not in "".join(os.listdir(folder))
    assert len(datasets.load("mnist", data_dir=data_dir, validation=0.25).validation) == 3


@pytest.mark.parametrize("file", CIFAR_FILES)
def test_cifar10_from_either_archive(data_dir, register, file):
    register(builders.Cifar10, CIFAR_FILES)
    write(data_dir / "cifar10", {file: CIFAR_FILES[file]})
    folder = builders.prepare("cifar10", data_dir)
    assert examples(folder) == {split: pairs(*arrays) for split, arrays in PHOTOGRAPHS.items()}
    assert datasets._open("cifar10", folder)["train"].classes == builders.Cifar10.CLASSES


def test_files_of_one_name_do_not_mix(data_dir, register):
    clothes = {split: (255 - images, 9 - labels) for split, (images, labels) in DIGITS.items()}
    for builder, content in ((builders.Mnist, DIGITS), (builders.FashionMnist, clothes)):
        register(builder, mnist_files(content))
        write(data_dir / builder.name, mnist_files(content))
    for name, content in (("mnist", DIGITS), ("fashion_mnist", clothes)):
        assert examples(builders.prepare(name, data_dir)) == {s: pairs(*arrays) for s, arrays in content.items()}


def test_the_second_mirror_serves(data_dir, register, served):
    address, folder = served
    register(builders.Mnist, mnist_files(), mirrors=("http://127.0.0.1:9/", address + "none/", address))
    write(folder, mnist_files())
    got = examples(builders.prepare("mnist", data_dir))
    assert got == {split: pairs(*arrays) for split, arrays in DIGITS.items()}


def test_the_second_mirror_serves_the_right_file(data_dir, register, served):
    address, folder = served
    register(builders.Mnist, mnist_files(), mirrors=(address + "changed/", address))
    write(folder / "changed", {file: b"changed" for file in mnist_files()})
    write(folder, mnist_files())
    got = examples(builders.prepare("mnist", data_dir))
    assert got == {split: pairs(*arrays) for split, arrays in DIGITS.items()}


def test_no_mirror_serves(data_dir, register):
    register(builders.Mnist, mnist_files())
    present = "train-images-idx3-ubyte.gz"
    write(data_dir / "mnist", {present: mnist_files()[present]})
    with pytest.raises(UserError) as raised:
        builders.prepare("mnist", data_dir)
    message = str(raised.value)
    assert message.startswith("mnist: cannot download train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz")
    assert f"put the files into {data_dir / 'mnist'} and start again" in message
    assert present not in message and "\n" not in message


@pytest.mark.parametrize("where", ["on disk", "downloaded"])
def test_a_wrong_file_is_named(data_dir, register, served, where):
    address, folder = served
    register(builders.Mnist, mnist_files(), mirrors=(address,))
    wrong = "train-images-idx3-ubyte.gz"
    write(data_dir / "mnist" if where == "on disk" else folder, {**mnist_files(), wrong: b"not these"})
    with pytest.raises(UserError, match=f"^mnist: .*{wrong}.* has wrong checksum; delete that file") as raised:
        builders.prepare("mnist", data_dir)
    assert "\n" not in str(raised.value)
    assert not (data_dir / "mnist" / "3.0.1").exists()


def test_a_kept_download_is_verified_again(data_dir, register, served):
    """TFDS does not, and a text has no checksum of its own."""
    address, folder = served
    files = {"input.txt": PLAY.encode()}
    register(builders.TinyShakespeare, files, mirrors=(address,))
    write(folder, files)
    prepared = builders.prepare("tiny_shakespeare", data_dir)
    shutil.rmtree(prepared)
    (kept,) = [path for path in (data_dir / "downloads").rglob("*") if path.is_file() and path.suffix != ".INFO"]
    kept.write_bytes(kept.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(UserError, match=f"^tiny_shakespeare: .*{kept}, has wrong checksum; delete that file and start"):
        builders.prepare("tiny_shakespeare", data_dir)
    kept.unlink()
    assert builders.prepare("tiny_shakespeare", data_dir) == prepared


def test_a_file_that_cannot_be_read(data_dir, register):
    register(builders.Mnist, mnist_files())
    write(data_dir / "mnist", mnist_files())
    file = data_dir / "mnist" / "t10k-labels-idx1-ubyte.gz"
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=f"^mnist: cannot read {file} \\(Is a directory\\); check that it exists"):
        builders.prepare("mnist", data_dir)


def test_another_process_was_faster(data_dir, monkeypatch):
    read = builders.Digits._read

    def read_while_another_prepares(self, dl_manager):
        monkeypatch.setattr(builders.Digits, "_read", read)
        builders.prepare("digits", data_dir)
        return read(self, dl_manager)

    monkeypatch.setattr(builders.Digits, "_read", read_while_another_prepares)
    assert (builders.prepare("digits", data_dir) / "features.json").exists()


def test_a_full_disk(data_dir, monkeypatch):
    def read(self, dl_manager):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builders.Digits, "_read", read)
    with pytest.raises(UserError, match="digits: cannot write .*No space left on device"):
        builders.prepare("digits", data_dir)


# the tables


def test_every_address_has_a_checksum():
    files = {
        "mnist": mnist_files(),
        "fashion_mnist": mnist_files(),
        "cifar10": CIFAR_FILES,
        "tiny_shakespeare": ["input.txt"],
    }
    for name, names in files.items():
        builder = builders.BUILDERS[name]
        urls = {mirror + file for mirror in builder.MIRRORS for file in names}
        assert urls <= builder.url_infos.keys()
        for file in names:
            assert len({builder.url_infos[mirror + file].checksum for mirror in builder.MIRRORS}) == 1


@pytest.mark.parametrize(
    "name, files, table",
    [
        ("mnist", 4, "url_checksums/mnist.txt"),
        ("fashion_mnist", 4, "url_checksums/fashion_mnist.txt"),
        ("cifar10", 1, "url_checksums/cifar10.txt"),
        ("tiny_shakespeare", 1, "datasets/tiny_shakespeare/checksums.tsv"),
    ],
)
def test_checksums_are_tfds_s_own(name, files, table):
    """Those that TFDS registers for the same addresses."""
    theirs = load_url_infos(tfds.core.utils.tfds_path() / table)
    ours = builders.BUILDERS[name].url_infos
    common = theirs.keys() & ours.keys()
    assert len(common) == files and all(theirs[url] == ours[url] for url in common)


def test_names_are_those_that_load_knows():
    assert tuple(builders.BUILDERS) == datasets.BUILT
