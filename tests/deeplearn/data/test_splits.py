import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn.data.sources import Arrays, check_pixels
from deeplearn.data.splits import Data, check, hold_out
from deeplearn.errors import UserError


@given(st.integers(10, 500), st.floats(0.1, 0.9))
@example(10, 0.9)
@example(15, 0.1)
@example(500, 0.5)
def test_parts_are_disjoint_and_whole(size, fraction):
    rows, held_out = hold_out(size, fraction)
    assert len(held_out) == round(fraction * size)
    np.testing.assert_array_equal(np.sort(np.concatenate([rows, held_out])), np.arange(size))
    assert (np.diff(rows) > 0).all() and (np.diff(held_out) > 0).all()


def test_the_rule_is_fixed():
    """Another permutation would move validation examples into the training sets of old checkpoints."""
    _, held_out = hold_out(54_000, 0.1)
    assert held_out[:5].tolist() == [17, 18, 28, 50, 66] and held_out.sum() == 146_066_994


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.0, -0.1, 2.0])
def test_both_parts_must_have_examples(fraction):
    with pytest.raises(UserError, match="a validation fraction of .* of 10 examples holds out"):
        hold_out(10, fraction)


def data(**splits):
    part = Arrays({"image": np.zeros((4, 2, 3, 1), np.uint8), "label": np.array([0, 1, 1, 0])})
    return Data("x", **{"train": part, "validation": part, "test": part, "classes": ("a", "b"), **splits})


def labelled(labels):
    return Arrays({"image": np.zeros((len(labels), 2, 3, 1), np.uint8), "label": np.array(labels, np.int32)})


def test_what_is_well_passes():
    assert check(data(), (2, 3, 1)).spec["image"].shape == (2, 3, 1)
    assert check(data(test=labelled([9]), classes=())).test.arrays["label"][0] == 9


@pytest.mark.parametrize(
    "splits, shape, message",
    [
        ({"test": labelled([])}, None, "x: the test split is empty"),
        ({"train": labelled([])}, None, "x: the train split is empty"),
        ({"validation": labelled([0, 1, 2])}, None, "x validation: example 2 has label 2, outside 0 to 1"),
        ({"train": labelled([0, -1])}, None, "x train: example 1 has label -1, outside 0 to 1"),
        ({}, (3, 2, 1), r"x: images are of shape \(2, 3, 1\), but \(3, 2, 1\) is expected"),
    ],
)
def test_what_is_not_well_is_named(splits, shape, message):
    with pytest.raises(UserError, match=message) as raised:
        check(data(**splits), shape)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([[0, 6], [6, 0]], None),
        ([[0, 6], [3, 7]], "x train: example 1 has token 7, outside 0 to 6; use the tokenizer of the model"),
        ([[0, -1]], "x train: example 0 has token -1, outside 0 to 6"),
        ([[255, 0]], "x train: example 0 has token 255, outside 0 to 6"),
    ],
)
def test_tokens_are_in_the_vocabulary(tokens, message):
    good = Arrays({"tokens": np.zeros((2, 2), np.uint8)})
    whole = Data("x", Arrays({"tokens": np.array(tokens, np.int32)}), good, good)
    assert check(whole) is whole
    if message is None:
        assert check(whole, vocabulary=7) is whole
        return
    with pytest.raises(UserError, match=message):
        check(whole, vocabulary=7)


@pytest.mark.parametrize(
    "pixels, message",
    [
        ([0.0, 1.0], None),
        ([0.0, 1.0001], "x: image 9 has a pixel of 1.0001"),
        ([-1e-3, 0.0], "x: image 9 has a pixel of -0.001"),
        ([0.5, np.nan], "x: image 9 has a pixel of nan, outside 0 to 1"),
        ([0.0, 255.0], "x: image 9 has a pixel of 255, outside 0 to 1"),
    ],
)
def test_floating_pixels_are_in_their_range(pixels, message):
    images = np.zeros((2, 1, 2, 1), np.float32)
    images[1, 0, :, 0] = pixels
    check_pixels("x", np.full((2, 1, 2, 1), 255, np.uint8), [4, 9])
    if message is None:
        return check_pixels("x", images, [4, 9])
    with pytest.raises(UserError, match=message):
        check_pixels("x", images, [4, 9])


def test_unknown_split():
    whole = data()
    assert whole.split("test") is whole.test
    with pytest.raises(UserError, match="unknown split 'tets'; did you mean test"):
        whole.split("tets")
