"""The reference of every optimizer: torch.optim, or a plain NumPy transcription of the cited algorithm."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tests.deeplearn.optimizers import problem, references_torch
from tests.deeplearn.optimizers import references_adam as BY_NUMBER
from tests.deeplearn.optimizers import references_distance as BY_VECTOR
from tests.deeplearn.optimizers import references_layers as BY_LAYER

TRANSCRIBED = {  # optimizer: where it is transcribed, in a function of the same name
    **dict.fromkeys(["nadamw", "yogi", "adabelief", "lion", "signum", "adan", "adopt", "ademamix"], BY_NUMBER),
    **dict.fromkeys(["madgrad", "schedule_free_sgd", "schedule_free_adamw", "lookahead"], BY_NUMBER),
    **dict.fromkeys(["lamb", "lars", "novograd", "adafactor", "sm3", "fromage", "muon"], BY_LAYER),
    **dict.fromkeys(["prodigy", "dadapt_adamw", "dog", "dowg", "momo", "momo_adam"], BY_VECTOR),
    **dict.fromkeys(["polyak", "sam", "sophia"], BY_VECTOR),
}


def shown(name: str) -> str:
    """What the documentation calls the reference of an optimizer."""
    if name == "lbfgs":
        return "two-loop recursion in NumPy; Wolfe conditions"
    return "NumPy transcription" if name in TRANSCRIBED else f"torch.optim.{references_torch.CASES[name].name}"


def path(text: str, hyperparameters: Mapping[str, float], schedule: Callable[[int], float]) -> problem.Path:
    """The reference's path, arguments as for `problem.ours`; the defaults are those of our table."""
    name, defaults = problem.settings(text)
    h = defaults | dict(hyperparameters)
    rates = [h["learning_rate"] * float(schedule(t)) for t in range(problem.STEPS)]
    if not h.get("bias_correction", True):
        return by_array(BY_NUMBER.adam_without_correction, h, rates)
    if h.get("eps_in_sqrt"):
        return by_array(BY_NUMBER.rmsprop_inside, h, rates)
    if h.get("threshold", 5.0) != 5.0:  # PyTorch's
        return by_array(BY_NUMBER.radam, h, rates)
    if name not in TRANSCRIBED:
        return references_torch.path(references_torch.CASES[name], h, rates)
    run = by_vector if TRANSCRIBED[name] is BY_VECTOR else by_array
    return run(getattr(TRANSCRIBED[name], name), h, rates)


class Memory(SimpleNamespace):
    """What a rule stores; 0 where it has stored nothing."""

    def __getattr__(self, name):
        return 0.0


def by_array(rule: Callable, h: dict[str, Any], rates: list[float]) -> problem.Path:
    """The path of a rule of one array, see BY_NUMBER."""
    w = problem.split(problem.START)
    decay = h.get("weight_decay", 0.0)
    memory = {name: Memory() for name in w}
    params, evaluated = [], []
    for t, rate in enumerate(rates):
        _, g = problem.value_and_grad(w, t)
        after = {}
        for name in w:
            decays, is_kernel = problem.decays(name), problem.is_kernel(name)
            own = {"learning_rate": rate, "weight_decay": decay * decays, "decays": decays, "is_kernel": is_kernel}
            after[name] = rule(w[name], g[name], t + 1, memory[name], SimpleNamespace(**(h | own)))
        w = after
        params.append(w)
        evaluated.append({name: vars(memory[name]).get("evaluated", w[name]) for name in w})
    return problem.Path(params, evaluated)


class Here(NamedTuple):
    """The loss of a step: its value at the parameters, and functions of one vector of all numbers."""

    value: float
    gradient: Callable[[np.ndarray], np.ndarray]
    hessian_times: Callable[[np.ndarray], np.ndarray]


def here(w: problem.Params, value: float, t: int) -> Here:
    return Here(
        value,
        lambda v: problem.flat(problem.value_and_grad(problem.shaped(v, w), t)[1]),
        lambda v: problem.flat(problem.hessian_product(w, t, problem.shaped(v, w))),
    )


def by_vector(rule: Callable, h: dict[str, Any], rates: list[float]) -> problem.Path:
    """The path of a rule of all parameters in one vector, see references_distance."""
    w, memory, params = problem.split(problem.START), Memory(), []
    decay = {name: np.full(x.shape, h.get("weight_decay", 0.0) * problem.decays(name)) for name, x in w.items()}
    for t, rate in enumerate(rates):
        value, g = problem.value_and_grad(w, t)
        own = SimpleNamespace(**(h | {"learning_rate": rate, "weight_decay": problem.flat(decay)}))
        new = rule(problem.flat(w), problem.flat(g), t + 1, memory, own, here(w, value, t))
        w = problem.shaped(new, w)
        params.append(w)
    return problem.Path(params, params)
