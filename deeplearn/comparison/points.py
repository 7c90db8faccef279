"""Where in an optimizer's search space the runs of a comparison lie."""

import numpy as np

from deeplearn import optimizers
from deeplearn.errors import UserError, unknown

Bounds = dict[str, tuple[float, float]]


def space(text: str, bounds: Bounds | None = None) -> dict[str, optimizers.Range]:
    """The Range of each hyperparameter that `text` leaves open, the learning rate first.

    `bounds` replaces the ends of some, and may open others: in log if they are positive, else linear.

    Raises UserError for an unknown optimizer or hyperparameter, for ends that are out of order or out of what the
    optimizer takes, and where nothing is left to search.

    >>> list(space("adamw(b1=0.8)"))
    ['learning_rate', 'b2', 'weight_decay']
    >>> space("adam", {"eps": (1e-8, 1e-3)})["eps"]
    Range(low=1e-08, high=0.001, scale='log')
    """
    name, given = optimizers.parse(text)
    entry = optimizers.OPTIMIZERS[name]
    ranges = dict(entry.space)
    for key, (low, high) in (bounds or {}).items():
        defaults = {"learning_rate": entry.learning_rate, **entry.hyperparameters}
        if not isinstance(defaults.get(key), float):
            raise unknown(f"hyperparameter of {name}", key, [k for k, x in defaults.items() if isinstance(x, float)])
        if not low < high:
            raise UserError(f"the space of {name}'s {key} is empty, from {low} to {high}; the lower end comes first")
        optimizers.check(name, {key: float(low)})
        optimizers.check(name, {key: float(high)})
        scale = ranges[key].scale if key in ranges else "log" if low > 0 else "linear"
        if scale == "log" and low <= 0:
            raise UserError(f"the space of {name}'s {key} begins at {low}; it is searched in log, from above 0")
        ranges[key] = optimizers.Range(float(low), float(high), scale)
    found = {key: extent for key, extent in ranges.items() if key not in given}
    if not found:
        raise UserError(f"{text} leaves nothing to search; leave one of its hyperparameters out of the brackets")
    return found


def halton(text: str, number: int, seed: int = 0, bounds: Bounds | None = None) -> list[dict[str, float]]:
    """`number` quasi-random points of an optimizer's space: a Halton sequence, scrambled by the seed.

    They fill the space more evenly than random points, and the first of more points are the same: a study can be
    extended. Owen 2017, A randomized Halton algorithm in R.

    >>> [sorted(point) for point in halton("momentum", 2)]
    [['learning_rate', 'momentum'], ['learning_rate', 'momentum']]
    """
    from scipy.stats import qmc

    ranges = space(text, bounds)
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


def grid(text: str, number: int, bounds: Bounds | None = None) -> list[dict[str, float]]:
    """`number` learning rates from one end of the optimizer's range to the other, evenly apart in log.

    A single one is the default.

    >>> [f"{point['learning_rate']:.2g}" for point in grid("adam", 3)]
    ['3.3e-05', '0.001', '0.03']
    """
    default = optimizers.OPTIMIZERS[optimizers.parse(text)[0]].learning_rate
    ranges = space(text, bounds)
    at = ranges["learning_rate"].at if "learning_rate" in ranges else float
    return rates(text, [default] if number == 1 else [at(u) for u in np.linspace(0, 1, number)])
