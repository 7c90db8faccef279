import numpy as np
import pytest

from deeplearn.data.splits import SPLITS
from deeplearn.data.synthetic import sequences
from deeplearn.errors import UserError


def test_shapes_and_splits():
    data = sequences()
    assert [len(data.split(split)) for split in SPLITS] == [700, 150, 150]
    for split in SPLITS:
        arrays = data.split(split).arrays
        assert arrays["inputs"].shape[1:] == (10, 1) and arrays["targets"].shape[1:] == (1,)
        assert arrays["inputs"].dtype == arrays["targets"].dtype == np.float32


def test_the_target_is_the_next_value():
    short, longer = (sequences(length=length, noise=0.0) for length in (10, 11))
    np.testing.assert_allclose(short.train.arrays["targets"], longer.train.arrays["inputs"][:, 10], rtol=1e-6)


def test_no_sequence_is_in_two_splits():
    data = sequences()
    rows = np.concatenate([data.split(split).arrays["inputs"][..., 0] for split in SPLITS])
    assert len(np.unique(rows, axis=0)) == 1000


def test_the_seed_decides():
    one, same, other = (sequences(seed=seed).train.arrays["inputs"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_smooth_but_not_trivial():
    """Far better than the last value is possible: a linear regression on the ten values does it."""
    train, test = (sequences().split(split).arrays for split in ("train", "test"))
    last = np.mean((test["inputs"][:, -1] - test["targets"]) ** 2)
    design = [np.c_[arrays["inputs"][..., 0], np.ones(len(arrays["inputs"]))] for arrays in (train, test)]
    weights = np.linalg.lstsq(design[0], train["targets"])[0]
    linear = np.mean((design[1] @ weights - test["targets"]) ** 2)
    assert 0.05**2 < linear < last / 4
    assert last < np.var(test["targets"])


def test_too_few():
    with pytest.raises(UserError, match="sequences: the test split is empty"):
        sequences(examples=2)
