import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn.data import builders, datasets, text, tokenizers
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import SPLITS
from deeplearn.errors import UserError

TEXTS = {"train": "to be, or not to be:\nthat is the question", "validation": "be not\n", "test": "ô that it be"}


ALL = "\n ,:abehinoqrstuô"


@pytest.fixture
def tiny(data_dir):
    """tiny(train="abc", ...): the directory of a data set "tiny_text" of these texts, by default of `TEXTS`."""

    def prepare(**texts):
        class TinyText(builders.TinyShakespeare, skip_registration=True):
            """Tiny texts."""

            VERSION = tfds.core.Version("1.0.0")

            def _read(self, dl_manager):
                return texts or TEXTS

        builder = TinyText(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_dir)

    return prepare


# characters and windows


@given(st.text(), st.text())
@example("", "")
@example("\r\n\x00\U0001f600", "")
@example("aa", "b")
def test_decode_undoes_encode(content, more):
    vocabulary = "".join(sorted(set(content + more)))
    tokens = text.encode(content, vocabulary)
    assert tokens.shape == (len(content),) and text.decode(tokens, vocabulary) == content
    assert [vocabulary.index(character) for character in content] == tokens.tolist()


@pytest.mark.parametrize("size, dtype", [(256, np.uint8), (257, np.int32)])
def test_many_characters_take_more_bytes(size, dtype):
    vocabulary = "".join(map(chr, range(1000, 1000 + size)))
    tokens = text.encode(vocabulary, vocabulary)
    assert tokens.dtype == dtype and tokens.tolist() == list(range(size))


@pytest.mark.parametrize("content", ["a%b", "ab%", "%"])
def test_an_unknown_character_is_named(content):
    with pytest.raises(UserError, match=f"character {content.index('%')} of the text, '%', is not in the vocabulary"):
        text.encode(content, "abc")


@given(st.integers(2, 300), st.data())
def test_every_token_is_asked_for_once(size, draw):
    length = draw.draw(st.integers(1, size - 1))
    tokens = np.arange(size)
    windows = text.windows(tokens, length)
    rest = (size - 1) % length
    assert windows.shape == ((size - 1) // length, length + 1)
    assert windows[:, 1:].ravel().tolist() == list(range(1, size - rest))
    assert windows[:, :-1].ravel().tolist() == list(range(size - rest - 1))


@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 12))
@example(10, 9, 0)
@example(10, 8, 1)
@example(10, 4, 3)
@example(10, 1, 0)
@example(2, 1, 1)
def test_windows_with_a_margin(size, length, margin):
    """Each goes on for so many tokens more; with length - 1 every run of length + 1 up to the last window is in one."""
    tokens = np.arange(size)
    if length >= size - margin:
        with pytest.raises(UserError, match="does not fit"):
            text.windows(tokens, length, margin)
        return
    found = text.windows(tokens, length, margin)
    assert found.shape == ((size - 1 - margin) // length, length + 1 + margin)
    np.testing.assert_array_equal(found[:, : length + 1], text.windows(tokens, length)[: len(found)])
    np.testing.assert_array_equal(found, found[:, :1] + np.arange(length + 1 + margin)[None])
    if margin == length - 1:
        starts = {int(row[i]) for row in found for i in range(margin + 1)}
        assert starts == set(range(max(starts) + 1))


@pytest.mark.parametrize("length", [-1, 0, 8, 9])
def test_a_length_that_gives_no_window(length):
    with pytest.raises(UserError, match=f"length {length} does not fit a text of 8; choose one from 1 to 7"):
        text.windows(np.arange(8), length)


# data sets


def test_splits_are_the_texts(tiny, data_dir):
    tiny()
    data = text.load("tiny_text", length=3, data_dir=data_dir)
    vocabulary = text.vocabulary("tiny_text", data_dir=data_dir)
    assert vocabulary == ALL
    assert data.name == "tiny_text" and data.classes == () and data.version == "1.0.0"
    assert data.spec["tokens"].shape == (4,) and data.spec["tokens"].dtype == np.uint8
    for split in SPLITS:
        source = data.split(split)
        assert isinstance(source, Arrays)
        tokens = source.arrays["tokens"]
        found = text.decode(tokens[0, :1], vocabulary) + text.decode(tokens[:, 1:].ravel(), vocabulary)
        assert TEXTS[split].startswith(found) and len(TEXTS[split]) - len(found) < 3


def test_windows_for_training_alone_have_a_margin(tiny, data_dir):
    tiny()
    data = text.load("tiny_text", length=3, margin=2, data_dir=data_dir)
    lengths = {split: data.split(split).arrays["tokens"].shape[1] for split in SPLITS}
    assert lengths == {"train": 6, "validation": 4, "test": 4}


def test_encoded_once(tiny, data_dir, monkeypatch):
    folder = tiny()
    first = text.load("tiny_text", length=2, data_dir=data_dir)
    (kept,) = folder.glob("tiny_text-1.0.0-*-tokens*.arrays")
    monkeypatch.setattr(text, "_read", None)
    again = text.load("tiny_text", length=2, data_dir=data_dir)
    np.testing.assert_array_equal(again.test.arrays["tokens"], first.test.arrays["tokens"])
    assert text.vocabulary("tiny_text", data_dir=data_dir) == ALL


def by_words(name, size):
    """A tokenizer of these texts' words, which are the last of its vocabulary."""
    words = sorted({word for content in TEXTS.values() for word in content.split(" ")})

    def encode(content):
        return np.array([size - 1 - words.index(word) for word in content.split(" ")], np.int32)

    def decode(tokens):
        return " ".join(words[size - 1 - token] for token in tokens)

    return tokenizers.Tokenizer(name, size, encode, decode)


@pytest.mark.parametrize("size, dtype", [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_tokens_of_a_tokenizer(tiny, data_dir, size, dtype):
    tiny()
    tokenizer = by_words("words", size)
    data = text.load("tiny_text", length=1, tokenizer=tokenizer, data_dir=data_dir)
    for split in SPLITS:
        tokens = data.split(split).arrays["tokens"]
        assert tokens.dtype == dtype and data.spec["tokens"].dtype == dtype
        assert tokenizer.decode([*tokens[:, 0].tolist(), int(tokens[-1, 1])]) == TEXTS[split]


def test_each_tokenizer_encodes_once(tiny, data_dir, monkeypatch):
    folder = tiny()
    characters = tokenizers.load("characters", "tiny_text", data_dir=data_dir)
    kinds = (None, by_words("one", 20), by_words("two", 300), characters)

    def load():
        loaded = [text.load("tiny_text", length=1, tokenizer=kind, data_dir=data_dir) for kind in kinds]
        return [data.train.arrays["tokens"].tolist() for data in loaded]

    first = load()
    assert len(list(folder.glob("tiny_text-1.0.0-*-tokens*.arrays"))) == 4
    monkeypatch.setattr(text, "_read", None)
    assert load() == first and first[0] == first[3] and first[1] != first[2]


def test_a_split_that_is_too_short(tiny, data_dir):
    tiny()
    with pytest.raises(UserError, match="length 7 does not fit a text of 7"):
        text.load("tiny_text", length=7, data_dir=data_dir)


def test_a_split_that_is_missing(tiny, data_dir):
    tiny(train="abc", test="abc")
    with pytest.raises(UserError, match="tiny_text: the validation split in .* is empty"):
        text.load("tiny_text", length=1, data_dir=data_dir)


def test_images_are_no_text_and_text_no_images(tiny, prepare, data_dir):
    tiny()
    prepare(train=4, test=2)
    with pytest.raises(UserError, match="tiny has the features .*; a text is needed"):
        text.load("tiny", length=1, data_dir=data_dir)
    with pytest.raises(UserError, match="tiny_text has the features text; an image and a label are needed"):
        datasets.load("tiny_text", data_dir=data_dir)


def test_another_format(tiny, data_dir):
    info = tiny() / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match='is in the format tfrecord; prepare it again with file_format="array_record"'):
        text.load("tiny_text", length=1, data_dir=data_dir)


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_file(tiny, data_dir, size):
    (file,) = tiny().glob("*validation*")
    os.truncate(file, size)
    with pytest.raises(UserError, match="tiny_text: cannot read the validation split in .*1.0.0") as raised:
        text.load("tiny_text", length=1, data_dir=data_dir)
    assert "\n" not in str(raised.value)


def test_an_unknown_name(tiny, data_dir):
    tiny()
    with pytest.raises(UserError, match="unknown data set 'tiny_txt'; did you mean tiny_text"):
        text.load("tiny_txt", length=1, data_dir=data_dir)


DATA = os.environ.get("TFDS_DATA_DIR", "")


@pytest.mark.skipif(not os.path.isdir(os.path.join(DATA, "tiny_shakespeare")), reason="not in TFDS_DATA_DIR")
def test_the_real_one():
    data = text.load("tiny_shakespeare", length=64, data_dir=DATA)
    assert [len(data.split(split)) for split in SPLITS] == [15_685, 871, 871]
    vocabulary = text.vocabulary("tiny_shakespeare", data_dir=DATA)
    assert len(vocabulary) == 65 and vocabulary[0] == "\n" and vocabulary[-1] == "z"
    assert text.decode(data.train.arrays["tokens"][0], vocabulary).startswith("First Citizen:\nBefore we proceed")
    assert len(np.unique(data.train.arrays["tokens"])) == 65  # nothing occurs in validation or test alone
