"""The runs in which each optimizer is compared with its reference, and how far apart they are."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from deeplearn.optimizers import OPTIMIZERS
from tests.deeplearn.optimizers import lbfgs, problem, references

# With these rates 50 steps go far, and do not diverge.
RATES = {
    **dict.fromkeys(["adam", "adamw", "adamax", "adamaxw", "nadam", "nadamw", "amsgrad", "radam", "adabelief"], 0.05),
    **dict.fromkeys(["yogi", "adan", "adopt", "novograd", "sophia", "rmsprop"], 0.05),
    **dict.fromkeys(["lion", "signum", "lamb", "ademamix"], 0.02),
    **dict.fromkeys(["muon", "schedule_free_adamw", "momo_adam"], 0.1),
    "lars": 0.3,
}
KIN = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}  # an eps in the wrong place shows
FREE = {"eps": 1e-3, "d0": 1e-2, "learning_rate": 0.5}
OTHER = {  # hyperparameters that are not the defaults
    **dict.fromkeys(["adam", "adamw", "adamax", "adamaxw", "nadamw", "amsgrad", "radam", "lamb", "novograd"], KIN),
    "momentum": {"momentum": 0.7},
    "nesterov": {"momentum": 0.7},
    "adagrad": {"initial_accumulator_value": 0.5, "eps": 1e-2},
    "adadelta": {"rho": 0.8, "eps": 1e-2},
    "rmsprop": {"decay": 0.8, "eps": 1e-2},
    "nadam": KIN | {"momentum_decay": 0.05},
    "adabelief": KIN | {"eps_root": 1e-4},
    "yogi": KIN,
    "lion": {"b1": 0.8, "b2": 0.95},
    "signum": {"beta": 0.7},
    "lars": {"momentum": 0.7, "trust_coefficient": 1e-2},
    "adafactor": {"decay_rate": 0.6, "clipping_threshold": 0.5, "eps": 1e-3},
    "adan": KIN | {"b3": 0.9},
    "sophia": {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "gamma": 0.3, "clip_threshold": 0.7},
    "muon": {"beta": 0.8, "consistent_rms": 0.3, "adam_b1": 0.8, "adam_b2": 0.95, "eps": 1e-2},
    "schedule_free_sgd": {"b1": 0.7, "weight_lr_power": 1.0},
    "schedule_free_adamw": KIN | {"weight_lr_power": 1.0},
    "prodigy": FREE | {"b1": 0.8, "b2": 0.95, "d_coef": 0.5},
    "dadapt_adamw": FREE | {"b1": 0.8, "b2": 0.95},
    "dog": {"reps_rel": 1e-2, "eps": 0.1, "learning_rate": 0.5},
    "dowg": {"eps": 1e-2},
    "momo": {"beta": 0.7, "lower_bound": 20.0},
    "momo_adam": KIN | {"lower_bound": 20.0},
    "polyak": {"f_min": 20.0, "eps": 0.1},
    "lookahead": {"momentum": 0.7, "slow_step_size": 0.3},
    "sam": {"rho": 0.2, "momentum": 0.7},
    "rprop": {"shrink": 0.4, "grow": 1.3, "smallest": 0.01, "largest": 3.0},
    "adopt": KIN,
    "ademamix": KIN | {"b3": 0.95, "alpha": 3.0},
    "madgrad": {"momentum": 0.7, "eps": 1e-2},
    "sm3": {"momentum": 0.7},
}
PROGRAMS = {  # other programs of the same optimizer
    "rmsprop": ["rmsprop(centered=True)", "rmsprop(eps_in_sqrt=True)"],
    "adam": ["adam(bias_correction=False)"],
    "adamw": ["adamw(bias_correction=False)"],
    "radam": ["radam(threshold=8.0)"],
    "adafactor": ["adafactor(min_dim_size_to_factor=2)"],
    "sophia": ["sophia(update_interval=3)"],
    "muon": ["muon(nesterov=False, ns_steps=3)"],
    "lookahead": ["lookahead(sync_period=3)"],
    "lbfgs": ["lbfgs(memory_size=3)"],
}


def base(name: str) -> dict[str, float]:
    entry = OPTIMIZERS[name]
    decay = {"weight_decay": 0.1} if "weight_decay" in entry.hyperparameters else {}
    return {"learning_rate": RATES.get(name, entry.learning_rate)} | decay


def runs(name: str) -> list[tuple[str, dict[str, float]]]:
    """The texts and hyperparameters with which an optimizer runs."""
    other = base(name) | OTHER.get(name, {})
    second = [(name, other)] if name in OTHER else []
    return [(name, base(name)), *second, *((text, other) for text in PROGRAMS.get(name, []))]


def schedule(t):
    """Rises for 8 steps, falls in the last 8; exact in float32."""
    return jnp.minimum(1.0, jnp.minimum((t + 1) / 8, (58 - t) / 16))


def scheduled(text: str):
    """None for Rprop, whose step sizes are in units of the rate, in PyTorch of the first one."""
    return None if text.startswith("rprop") else schedule


def difference(text: str, hyperparameters: Mapping[str, float]) -> float:
    """The largest over all steps, parameters and parameters to evaluate, relative to the largest movement."""
    if text.startswith("lbfgs"):
        return lbfgs.difference(text)
    ours = problem.ours(text, hyperparameters, schedule=scheduled(text))
    reference = references.path(text, hyperparameters, scheduled(text) or (lambda t: 1.0))
    apart = (distance(x, y) for x, y in zip(ours, reference, strict=True))
    return max(apart) / movement(reference)


def distance(path: list[problem.Params], other: list[problem.Params]) -> float:
    """The largest of any number at any step."""
    return max(largest(x[name] - y[name]) for x, y in zip(path, other, strict=True) for name in y)


def movement(path: problem.Path) -> float:
    start = problem.flat(problem.split(problem.START))
    return max(largest(problem.flat(w) - start) for w in path.params)


def largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x)))
