"""Blank data: of the shapes, dtypes and sizes that the real ones have."""

import numpy as np
import pytest

from deeplearn.data import blank, builders, datasets, text, tokenizers
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import SPLITS


@pytest.mark.parametrize("name", blank.IMAGES)
def test_images_are_those_of_the_builder(name):
    builder = builders.BUILDERS[name]
    with blank.instead():
        data = datasets.load(name, validation=0.1)
    train, test, shape, classes = blank.IMAGES[name]
    assert (builder.IMAGE_SHAPE, len(builder.CLASSES)) == (shape, classes) and len(data.classes) == classes
    assert data.spec["image"].shape == shape and data.spec["image"].dtype == np.uint8
    assert (len(data.train) + len(data.validation), len(data.test)) == (train, test)
    assert isinstance(data.train, Arrays)  # resident, as the real ones


def test_they_are_as_the_real_digits(tmp_path):
    real = datasets.load("digits", data_dir=tmp_path)
    with blank.instead():
        data = datasets.load("digits")
    assert [len(data.split(split)) for split in SPLITS] == [len(real.split(split)) for split in SPLITS]
    assert data.spec == real.spec


def test_a_text_in_characters():
    """Tiny Shakespeare has 1,115,394, of which TFDS leaves out none."""
    characters, sizes = blank.TEXTS["tiny_shakespeare"]
    assert sum(sizes) == 1_115_394
    with blank.instead():
        tokenizer = tokenizers.load("characters", "tiny_shakespeare")
        data = text.load("tiny_shakespeare", length=64, tokenizer=tokenizer, margin=63)
        assert tokenizer.vocabulary_size == len(text.vocabulary("tiny_shakespeare")) == characters
    assert data.spec["tokens"].shape == (128,) and data.spec["tokens"].dtype == np.uint8
    assert len(data.train) == (sizes[0] - 1 - 63) // 64 and len(data.test) == (sizes[2] - 1) // 64


def test_a_corpus_in_other_tokens():
    """Too large to be held, so that it is streamed."""
    with blank.instead():
        tokenizer = tokenizers.load("gpt2", "anything")
        data = text.load("anything", length=8, tokenizer=tokenizer)
    assert tokenizer.vocabulary_size == 50_257
    assert not isinstance(data.train, Arrays) and len(data.train) == blank.CORPUS
    assert data.train.__getitems__([3, 5])["tokens"].shape == (2, 9) and data.spec["tokens"].dtype == np.uint16


def test_what_is_not_known_is_read(prepare, data_dir):
    """And everything is, outside."""
    prepare(train=40, test=10)
    with blank.instead():
        assert datasets.load("tiny", data_dir=data_dir).spec["image"].shape == (4, 5, 3)
    assert blank.images("mnist", 0.1) is None and blank.vocabulary("tiny_shakespeare") is None
