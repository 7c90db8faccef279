"""Whatever byte of a prepared directory changes: the data are the same, or one line says what is damaged."""

import contextlib
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from deeplearn.data import builders, datasets, integrity, text
from deeplearn.data.splits import SPLITS
from deeplearn.errors import UserError

DESCRIPTIONS = ("dataset_info.json", "features.json", "label.labels.txt")
TEXTS = {"train": "to be, or not to be:\nthat is the question", "validation": "be not\n", "test": "\u00f4 that it be"}


def images(data_dir):
    """All that `load` returns, to compare."""
    data = datasets.load("tiny", data_dir=data_dir, validation=0.25)
    batches = [data.split(split).__getitems__(range(len(data.split(split)))) for split in SPLITS]
    return data.classes, [(batch["image"].tobytes(), batch["label"].tobytes()) for batch in batches]


def tokens(data_dir):
    data = text.load("tiny_text", length=3, data_dir=data_dir)
    return text.vocabulary("tiny_text", data_dir=data_dir), [data.split(s).arrays["tokens"].tobytes() for s in SPLITS]


@pytest.fixture
def tiny_text(data_dir):
    class TinyText(builders.TinyShakespeare, skip_registration=True):
        """Tiny texts."""

        VERSION = tfds.core.Version("1.0.0")

        def _read(self, dl_manager):
            return TEXTS

    builder = TinyText(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def forget(*folders):
    for folder in folders:
        for kept in folder.glob("*.arrays"):
            kept.unlink()


@contextlib.contextmanager
def changed(path, content):
    """In it the file has another content."""
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


def flips(path, places):
    """Each of these bytes with one bit changed: in ASCII a digit becomes another one, or a letter another letter."""
    content = path.read_bytes()
    for place in places:
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def outcome(load, data_dir):
    """What was loaded, None for an error of one line; anything else fails."""
    try:
        return load(data_dir)
    except UserError as error:
        assert "\n" not in str(error) and str(error).startswith("tiny"), error
        return None


# Every tenth byte, or every byte: of all the cases below together that takes more than a minute.
STEPS = (10, pytest.param(1, marks=pytest.mark.slow))
# Whether there are checksums, and what is there of the decoded data.
STATES = ("checksums", "checksums, decoded", "decoded", "first use", "on disk")


def set_up(state, folder, load, data_dir, monkeypatch):
    """Prepare this state, and return what is loaded from the intact directory."""
    if "checksums" in state:
        integrity.record(folder)
    if state == "on disk":
        monkeypatch.setattr(datasets, "IN_MEMORY", 0)
    expected = load(data_dir)
    if "decoded" not in state:
        forget(folder)
    return expected


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("file", [*DESCRIPTIONS, integrity.CHECKSUMS])
@pytest.mark.parametrize("step", STEPS)
def test_any_changed_byte_of_a_description(prepared, data_dir, monkeypatch, state, file, step):
    expected = set_up(state, prepared, images, data_dir, monkeypatch)
    path = prepared / file
    if not path.exists():
        pytest.skip("no checksums in this state")
    results = []
    for content in flips(path, range(0, path.stat().st_size, step)):
        with changed(path, content):
            results.append(outcome(images, data_dir))
        if "decoded" not in state:
            forget(prepared)
    if file == "label.labels.txt" and state in ("first use", "on disk"):  # the names are nowhere else
        expected, results = expected[1], [result and result[1] for result in results]
    assert all(result in (None, expected) for result in results)
    if "checksums" in state:
        assert not any(results)
    if state == "decoded" and file != "dataset_info.json":
        assert all(results)


@pytest.mark.parametrize("state", STATES[:-1])
@pytest.mark.parametrize("file", DESCRIPTIONS[:2])
@pytest.mark.parametrize("step", STEPS)
def test_any_changed_byte_of_a_text_s_description(tiny_text, data_dir, monkeypatch, state, file, step):
    expected = set_up(state, tiny_text, tokens, data_dir, monkeypatch)
    for content in flips(tiny_text / file, range(0, (tiny_text / file).stat().st_size, step)):
        with changed(tiny_text / file, content):
            assert outcome(tokens, data_dir) in (None, expected)
        if "decoded" not in state:
            forget(tiny_text)


def places(path, count):
    """Bytes of an ArrayRecord file: of what is not padding, and a few of the padding."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    used = np.flatnonzero(content)
    return [*used[:: max(1, len(used) // count)], *range(0, len(content), len(content) // 20)]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("step", STEPS)
def test_changed_bytes_of_records(prepared, data_dir, monkeypatch, state, split, step):
    expected = set_up(state, prepared, images, data_dir, monkeypatch)
    (path,) = prepared.glob(f"*-{split}.*")
    results = []
    for content in flips(path, places(path, 200 // step)):
        with changed(path, content):
            results.append(outcome(images, data_dir))
        if "decoded" not in state:
            forget(prepared)
    assert all(result in (None, expected) for result in results)
    assert all(results) if "decoded" in state else not all(results)
    assert state != "checksums" or not any(results)


@pytest.mark.parametrize("state", STATES[:-1])
@pytest.mark.parametrize("step", STEPS)
def test_changed_bytes_of_a_text_s_records(tiny_text, data_dir, monkeypatch, state, step):
    expected = set_up(state, tiny_text, tokens, data_dir, monkeypatch)
    (path,) = tiny_text.glob("*-train.*")
    for content in flips(path, places(path, 200 // step)):
        with changed(path, content):
            assert outcome(tokens, data_dir) in (None, expected)
        if "decoded" not in state:
            forget(tiny_text)


# what is said twice


def edit(path, change):
    content = json.loads(path.read_text())
    change(content["splits"])
    path.write_text(json.dumps(content))


def swap_files(folder, other):
    (path,), (another,) = folder.glob("*-train.*"), other.glob("*-train.*")
    path.write_bytes(another.read_bytes())


CONTRADICTIONS = {
    "fewer examples": (
        lambda folder, other: edit(folder / "dataset_info.json", lambda splits: splits[0].update(shardLengths=["30"])),
        r"tiny-train\S* is damaged \(it has 40 examples, dataset_info.json says 30\)",
    ),
    "more examples": (
        lambda folder, other: edit(folder / "dataset_info.json", lambda splits: splits[0].update(shardLengths=["41"])),
        r"tiny-train\S* is damaged \(it has 40 examples, dataset_info.json says 41\)",
    ),
    "a split of another name": (
        lambda folder, other: edit(folder / "dataset_info.json", lambda splits: splits[1].update(name="tesu")),
        r"dataset_info.json is damaged \(tiny-test\S* belongs to none of its splits\)",
    ),
    "another data set's records": (
        swap_files,
        r"tiny-train\S* is damaged \(its examples have \d+ bytes, dataset_info.json says \d+\)",
    ),
    "names that are not UTF-8": (
        lambda folder, other: (folder / "label.labels.txt").write_bytes(b"\xe9\nb\nc\n"),
        r"label.labels.txt is damaged \(it is not UTF-8\)",
    ),
    "a class too few": (
        lambda folder, other: (folder / "label.labels.txt").write_text("a\nb\n"),
        r"label.labels.txt is damaged \(it has 2 different names, features.json says 3\)",
    ),
    "a class too many": (
        lambda folder, other: (folder / "label.labels.txt").write_text("a\nb\nc\nd\n"),
        r"label.labels.txt is damaged \(it has 4 different names, features.json says 3\)",
    ),
    "a class twice": (
        lambda folder, other: (folder / "label.labels.txt").write_text("a\nb\nb\n"),
        r"label.labels.txt is damaged \(it has 2 different names, features.json says 3\)",
    ),
    "a cut description": (
        lambda folder, other: os.truncate(folder / "dataset_info.json", 400),
        r"cannot read .*1.0.0 \(ParseError",
    ),
    "a description that is not UTF-8": (
        lambda folder, other: (folder / "features.json").write_bytes(b"\xff" * 100),
        r"cannot read .*1.0.0 \(UnicodeDecodeError",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_descriptions_and_records_that_contradict_each_other(prepare, data_dir, case):
    folder = prepare(train=40, test=10, validation=5)
    other = prepare("other", shape=(4, 5, 1), train=40, test=10)
    change, message = CONTRADICTIONS[case]
    change(folder, other)
    with pytest.raises(UserError, match=f"^tiny: .*{message}.*; restore the file, or delete its directory") as raised:
        datasets.load("tiny", data_dir=data_dir)
    assert "\n" not in str(raised.value)
    assert not list(folder.glob("*.arrays"))


def test_a_file_of_records_that_cannot_be_opened(prepared, data_dir):
    (path,) = prepared.glob("*-train.*")
    path.unlink()
    with pytest.raises(UserError, match=f"^tiny: cannot read {path} .No such file or directory.; check that it exists"):
        datasets.load("tiny", data_dir=data_dir)


# checksums


def test_a_directory_of_ours_has_checksums(data_dir):
    data = datasets.load("digits", data_dir=data_dir)
    folder = data_dir / "digits" / "1.0.0"
    sums = json.loads((folder / "checksums.json").read_text())["files"]
    assert set(sums) == {path.name for path in folder.iterdir()} - {"checksums.json", *map(str, kept(folder))}
    (path,) = folder.glob("*-train.*")
    with changed(path, path.read_bytes()[:-1]):
        assert len(datasets.load("digits", data_dir=data_dir).train) == len(data.train)  # decoded before
        forget(folder)
        with pytest.raises(UserError, match=r"digits: \S*digits-train\S* is damaged .*; restore the file, or delete"):
            datasets.load("digits", data_dir=data_dir)
    path.unlink()
    with pytest.raises(UserError, match=r"digits: cannot read \S*digits-train\S* \(No such file or directory\); check"):
        datasets.load("digits", data_dir=data_dir)


def kept(folder):
    return [path.name for path in folder.glob("*.arrays")]


def test_a_directory_without_its_description_is_not_used(data_dir):
    datasets.load("digits", data_dir=data_dir)
    (data_dir / "digits" / "1.0.0" / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=r"digits: \S*1.0.0 is damaged \(dataset_info.json is missing\); restore"):
        datasets.load("digits", data_dir=data_dir)


def test_checksums_are_of_the_prepared_files_alone(prepared, data_dir):
    """Another process may be writing its own, and may have decoded the records."""
    datasets.load("tiny", data_dir=data_dir)
    (prepared / ".checksums.json.1234.tmp").write_text("{")
    (prepared / ".other.json").write_text("{")
    integrity.record(prepared)
    first = (prepared / "checksums.json").read_bytes()
    integrity.record(prepared)
    assert (prepared / "checksums.json").read_bytes() == first
    assert len(json.loads(first)["files"]) == 5


def test_a_full_disk_costs_the_checksums(prepared, monkeypatch, caplog):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    integrity.record(prepared)
    assert "No space left on device" in caplog.text and not (prepared / "checksums.json").exists()


@pytest.mark.parametrize("file", ["dataset_info.json", "label.labels.txt", "checksums.json"])
@pytest.mark.parametrize("code", ["EIO", "EACCES", "EMFILE"])
def test_a_description_that_cannot_be_read_is_not_called_damaged(prepared, data_dir, monkeypatch, file, code):
    integrity.record(prepared)
    number, real = getattr(errno, code), Path.open

    def refuse(path, *args, **kwargs):
        if path == prepared / file:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError) as raised:
        datasets.load("tiny", data_dir=data_dir)
    message = f"tiny: cannot read {prepared / file} ({os.strerror(number)}); check that it exists and may be read"
    assert str(raised.value).startswith(message)
