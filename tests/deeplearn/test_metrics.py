import pytest

from deeplearn import metrics


@pytest.mark.parametrize(
    "name, rises",
    [
        ("accuracy", True),
        ("validation/accuracy", True),
        ("loss", False),
        ("validation/loss", False),
        ("error", False),
        ("squared_error", False),
        ("validation/squared_error", False),
        ("gradient_norm", None),
        ("lossy", None),
    ],
)
def test_rises(name, rises):
    assert metrics.rises(name) is rises


def test_means_add_up():
    a, b = ({"loss": metrics.Mean(total, count)} for total, count in ((3.0, 2.0), (5.0, 6.0)))
    assert metrics.result(metrics.add(a, b)) == {"loss": 1.0}
