import numpy as np
import pytest
from scipy.stats import qmc

from deeplearn import optimizers
from deeplearn.comparison import points
from deeplearn.errors import UserError


def fractions(text, found):
    """Where in its Range each value lies, by bisection: (N, D)."""
    out = []
    for key, extent in points.space(text).items():
        at = np.linspace(0, 1, 100_001)
        values = extent.at(at)
        out.append(np.interp([point[key] for point in found], values, at))
    return np.stack(out, axis=1)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_can_be_searched(name):
    """Each value lies in its range, and the optimizer takes it as a leaf of its state."""
    found = points.halton(name, 4)
    leaves = optimizers.make(name).init({"kernel": np.ones((2, 2), np.float32)}, found[0]).hyperparams
    assert set(found[0]) == set(points.space(name)) <= set(leaves)
    for point in found:
        for key, value in point.items():
            extent = points.space(name)[key]
            assert extent.low <= value <= extent.high


def test_points_fill_the_space_evenly():
    """Less discrepancy than random points of the same number have in nineteen cases of twenty."""
    ours = qmc.discrepancy(fractions("adamw", points.halton("adamw", 64)))
    random = [qmc.discrepancy(np.random.default_rng(seed).random((64, 4))) for seed in range(100)]
    assert ours < np.quantile(random, 0.05)


def test_more_points_begin_with_the_same():
    assert points.halton("adam", 12)[:5] == points.halton("adam", 5)
    assert points.halton("adam", 5, seed=1) != points.halton("adam", 5)


def test_what_is_set_is_not_searched():
    assert [set(point) for point in points.halton("adam(learning_rate=0.1, b1=0.5)", 2)] == [{"b2"}] * 2


@pytest.mark.parametrize("name", ["adam", "adamw(b1=0.8)", "minibatch_sgd"])
def test_a_grid_is_even_in_log(name):
    rates = np.array([point["learning_rate"] for point in points.grid(name, 5)])
    steps = np.diff(np.log(rates))
    np.testing.assert_allclose(steps, steps[0])
    extent = points.space(name)["learning_rate"]
    np.testing.assert_allclose(rates[[0, -1]], [extent.low, extent.high])


def test_a_grid_of_one_is_the_default():
    assert points.grid("momentum", 1) == [{"learning_rate": 0.05}]


@pytest.mark.parametrize(
    "make, text, said",
    [
        (points.halton, "minibatch_sgd(learning_rate=1.0)", "leaves nothing to search"),
        (points.grid, "adam(learning_rate=1.0)", "sets the learning rate that is to vary"),
        (points.halton, "adamm", "unknown optimizer 'adamm'; did you mean"),
        (points.halton, "adam(b3=1)", "unknown setting of optimizer adam 'b3'"),
    ],
)
def test_mistakes(make, text, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        make(text, 4)


def test_bounds_replace_the_tables():
    found = points.halton("adam", 8, bounds={"b1": (0.5, 0.6), "eps": (1e-8, 1e-3)})
    assert all(0.5 <= point["b1"] <= 0.6 and 1e-8 <= point["eps"] <= 1e-3 for point in found)
    assert [set(point) for point in found] == [{"learning_rate", "b1", "b2", "eps"}] * 8
    table = points.space("adam")
    assert points.space("adam", {"b1": (0.5, 0.6)}) == {**table, "b1": table["b1"]._replace(low=0.5, high=0.6)}
    assert points.grid("adam", 2, {"learning_rate": (0.1, 1.0)}) == [{"learning_rate": 0.1}, {"learning_rate": 1.0}]


@pytest.mark.parametrize(
    "bounds, said",
    [
        ({"b1": (0.9, 0.8)}, "the space of adam's b1 is empty, from 0.9 to 0.8"),
        ({"b1": (0.9, 0.9)}, "is empty"),
        ({"b1": (0.9, 1.5)}, "b1=1.5 is out of range"),
        ({"b9": (0.1, 0.2)}, "unknown hyperparameter of adam 'b9'; did you mean"),
        ({"learning_rate": (0.0, 0.1)}, "begins at 0.0; it is searched in log"),
    ],
)
def test_bounds_that_make_no_sense(bounds, said):
    with pytest.raises(UserError, match=said):
        points.space("adam", bounds)
