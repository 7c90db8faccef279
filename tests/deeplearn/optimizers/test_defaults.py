"""Every default hyperparameter is the number that its origin names; rates are those of the table's own sweep."""

import inspect

import pytest

from deeplearn.optimizers import OPTIMIZERS
from tests.deeplearn.optimizers import problem, references_torch

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
DEFAULTS = {  # optimizer: learning rate, all others, their origin
    "gradient_descent": (0.3, {}, ""),
    "sgd": (0.01, {}, ""),
    "minibatch_sgd": (0.2, {}, ""),
    "momentum": (0.05, {"momentum": 0.9}, "Goodfellow et al., section 8.3.2"),
    "nesterov": (0.05, {"momentum": 0.9}, "Goodfellow et al., section 8.3.2"),
    "adagrad": (0.1, {"initial_accumulator_value": 0.1, "eps": 1e-7}, "Keras"),
    "adadelta": (1.0, {"rho": 0.9, "eps": 1e-6}, "PyTorch"),
    "rmsprop": (2e-3, {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False, "centered": False}, "lecture; eps PyTorch"),
    "adam": (1e-3, ADAM | {"bias_correction": True}, "paper"),
    "adamax": (5e-3, ADAM, "paper; eps PyTorch"),
    "nadam": (1e-3, ADAM | {"momentum_decay": 4e-3}, "PyTorch"),
    "amsgrad": (1e-3, ADAM, "PyTorch"),
    "adamw": (1e-3, ADAM | {"bias_correction": True, "weight_decay": 1e-2}, "PyTorch"),
    "nadamw": (1e-3, ADAM | {"weight_decay": 1e-2}, "adamw"),
    "adamaxw": (5e-3, ADAM | {"weight_decay": 1e-2}, "adamw"),
    "radam": (5e-3, ADAM | {"threshold": 5.0}, "PyTorch"),
    "adabelief": (1e-3, {"b1": 0.9, "b2": 0.999, "eps": 1e-16, "eps_root": 1e-16}, "authors' code"),
    "yogi": (1e-2, {"b1": 0.9, "b2": 0.999, "eps": 1e-3}, "paper"),
    "lion": (1e-3, {"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3}, "paper; decay Optax"),
    "signum": (1e-3, {"beta": 0.9}, "paper"),
    "lamb": (5e-3, {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.0}, "paper"),
    "lars": (2.0, {"momentum": 0.9, "trust_coefficient": 1e-3, "weight_decay": 0.0}, "paper"),
    "adafactor": (
        0.02,
        {"min_dim_size_to_factor": 128, "decay_rate": 0.8, "clipping_threshold": 1.0, "eps": 1e-30},
        "paper; 128 the authors' code",
    ),
    "adan": (3e-3, {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8, "weight_decay": 0.0}, "authors' code"),
    "novograd": (0.02, {"b1": 0.9, "b2": 0.25, "eps": 1e-6, "weight_decay": 0.0}, "Optax; the paper's 0.95 and 0.98"),
    "sophia": (
        1e-3,
        {
            "b1": 0.965,
            "b2": 0.99,
            "eps": 1e-8,
            "gamma": 0.01,
            "clip_threshold": 1.0,
            "update_interval": 10,
            "weight_decay": 1e-4,
        },
        "authors' code; eps and decay Optax",
    ),
    "muon": (
        3e-3,
        {
            "beta": 0.95,
            "ns_steps": 5,
            "nesterov": True,
            "consistent_rms": 0.2,
            "adam_b1": 0.9,
            "adam_b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
        },
        "authors' code; Liu et al. 2025; adam",
    ),
    "schedule_free_sgd": (0.5, {"b1": 0.9, "weight_decay": 0.0, "weight_lr_power": 2.0}, "authors' code"),
    "schedule_free_adamw": (5e-3, ADAM | {"weight_decay": 0.0, "weight_lr_power": 2.0}, "authors' code"),
    "prodigy": (1.0, ADAM | {"d0": 1e-6, "d_coef": 1.0, "weight_decay": 0.0}, "authors' code"),
    "dadapt_adamw": (1.0, ADAM | {"d0": 1e-6, "weight_decay": 0.0}, "authors' code"),
    "dog": (1.0, {"reps_rel": 1e-6, "eps": 1e-8, "weight_decay": 0.0}, "authors' code"),
    "dowg": (0.3, {"eps": 1e-4, "weight_decay": 0.0}, "authors' code"),
    "momo": (1.0, {"beta": 0.9, "lower_bound": 0.0}, "paper"),
    "momo_adam": (1e-2, ADAM | {"lower_bound": 0.0}, "paper"),
    "polyak": (1.0, {"f_min": 0.0, "eps": 0.0}, "paper"),
    "lookahead": (0.1, {"momentum": 0.9, "sync_period": 5, "slow_step_size": 0.5}, "paper"),
    "sam": (0.05, {"rho": 0.05, "momentum": 0.9}, "paper"),
    "rprop": (5e-4, {"shrink": 0.5, "grow": 1.2, "smallest": 1e-3, "largest": 30.0}, "paper; bounds of our own"),
    "lbfgs": (1.0, {"memory_size": 10}, "Optax"),
    "adopt": (1e-3, {"b1": 0.9, "b2": 0.9999, "eps": 1e-6}, "paper"),
    "ademamix": (1e-3, ADAM | {"b3": 0.9999, "alpha": 5.0, "weight_decay": 0.0}, "paper"),
    "madgrad": (1e-2, {"momentum": 0.9, "eps": 1e-6}, "authors' code"),
    "sm3": (0.1, {"momentum": 0.9}, "paper"),
    "fromage": (0.02, {}, ""),
}
OF_OUR_OWN = {  # the arguments of torch.optim whose defaults are others
    "momentum": {"momentum"},
    "nesterov": {"momentum", "nesterov"},
    "adagrad": {"initial_accumulator_value", "eps"},
    "rmsprop": {"alpha"},
    "amsgrad": {"amsgrad"},
    "rprop": {"step_sizes"},
}


@pytest.mark.parametrize("name, entry", OPTIMIZERS.items())
def test_defaults_are_those_of_their_origin(name, entry):
    rate, others, origin = DEFAULTS[name]
    assert (entry.learning_rate, entry.hyperparameters) == (rate, others), origin


@pytest.mark.parametrize("name, case", references_torch.CASES.items())
def test_defaults_are_those_of_torch(name, case):
    torch = pytest.importorskip("torch")
    theirs = inspect.signature(getattr(torch.optim, case.name)).parameters
    ours = case.arguments(problem.settings(name)[1])
    assert {key for key, value in ours.items() if value != theirs[key].default} == OF_OUR_OWN.get(name, set())
