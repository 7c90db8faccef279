"""The table of cases: shapes of its data, and what a peer finds prepared."""

import numpy as np
import pytest

from deeplearn.benchmark import cases
from deeplearn.errors import UserError


@pytest.mark.parametrize("name", cases.CASES)
def test_examples_are_the_same_for_the_same_count(name):
    case = cases.CASES[name]
    first, second = case.data(32), case.data(32)
    for key, array in first.items():
        assert len(array) == 32
        np.testing.assert_array_equal(array, second[key])


@pytest.mark.parametrize("name", ["sequence_rnn", "mnist_cnn_64"])
def test_prepared_batches_are_whole_and_float32(name):
    case = cases.CASES[name]
    batches = list(cases.prepared(case))
    assert len(batches) == min(cases.PREPARED, case.examples // case.batch_size)
    inputs, targets = batches[-1]
    assert inputs.shape[0] == targets.shape[0] == case.batch_size
    assert inputs.dtype == np.float32 and inputs.min() >= -1.3 and inputs.max() <= 1.3


def test_pixels_are_scaled_as_ours_are():
    from deeplearn.data import augment

    case = cases.CASES["mnist_cnn_64"]
    arrays = case.data(cases.PREPARED * case.batch_size)
    ours = augment.scale(-1.0, 1.0)({"image": arrays["image"][: case.batch_size]})["image"]
    np.testing.assert_allclose(next(cases.prepared(case))[0], ours, atol=1e-6)


def test_some_labels_contradict_their_image():
    arrays = cases.images((8, 8, 1), 1000)
    means = np.stack([arrays["image"][arrays["label"] == k].mean(axis=0) for k in range(10)])  # (10, 8, 8, 1)
    distances = np.square(arrays["image"][:, None] - means).sum(axis=(2, 3, 4))  # (1000, 10)
    wrong = np.mean(distances.argmin(axis=1) != arrays["label"])
    assert 0.05 < wrong < 0.13  # 0.1 drawn anew, a tenth of those the same as before


def test_select():
    assert cases.select("", ["a", "b"]) == ["a", "b"]
    assert cases.select("b, a", ["a", "b"]) == ["b", "a"]
    with pytest.raises(UserError, match="unknown case 'lstn'; did you mean lstm?"):
        cases.select("lstn", cases.CASES)
