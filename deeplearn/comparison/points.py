"""Where in an optimizer's search space the runs of a comparison lie."""

import numpy as np

from deeplearn import optimizers
from deeplearn.errors import UserError


def space(text: str) -> dict[str, optimizers.Range]:
    """The Range of each hyperparameter that `text` leaves open, the learning rate first.

    Raises UserError for an unknown optimizer or hyperparameter, and where nothing is left to search.

    >>> list(space("adamw(b1=0.8)"))
    ['learning_rate', 'b2', 'weight_decay']
    """
    name, given = optimizers.parse(text)
    found = {key: extent for key, extent in optimizers.OPTIMIZERS[name].space.items() if key not in given}
    if not found:
        raise UserError(f"{text} leaves nothing to search; leave one of its hyperparameters out of the brackets")
    return found


def halton(text: str, number: int, seed: int = 0) -> list[dict[str, float]]:
    """`number` quasi-random points of an optimizer's space: a Halton sequence, scrambled by the seed.

    They fill the space more evenly than random points, and the first of more points are the same: a study can be
    extended. Owen 2017, A randomized Halton algorithm in R.

    >>> [sorted(point) for point in halton("momentum", 2)]
    [['learning_rate', 'momentum'], ['learning_rate', 'momentum']]
    """
    from scipy.stats import qmc

    ranges = space(text)
    fractions = qmc.Halton(len(ranges), scramble=True, rng=np.random.default_rng(seed)).random(number)  # (number, D)
    return [
        {key: float(extent.at(u)) for (key, extent), u in zip(ranges.items(), row, strict=True)} for row in fractions
    ]


def rates(text: str, values: list[float]) -> list[dict[str, float]]:
    """These learning rates, for an optimizer that leaves its own open.

    >>> rates("adam", [0.1])
    [{'learning_rate': 0.1}]
    """
    if "learning_rate" not in space(text):
        raise UserError(f"{text} sets the learning rate that is to vary; leave it out of the brackets")
    return [{"learning_rate": float(value)} for value in values]


def grid(text: str, number: int) -> list[dict[str, float]]:
    """`number` learning rates from one end of the optimizer's range to the other, evenly apart in log.

    A single one is the default.

    >>> [f"{point['learning_rate']:.2g}" for point in grid("adam", 3)]
    ['3.3e-05', '0.001', '0.03']
    """
    entry = optimizers.OPTIMIZERS[optimizers.parse(text)[0]]
    fractions = np.linspace(0, 1, number)
    extent = entry.space["learning_rate"]
    return rates(text, [entry.learning_rate] if number == 1 else [extent.at(u) for u in fractions])
