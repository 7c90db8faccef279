"""What torch.optim does on the problem; each parameter is a group with its own weight decay."""

from collections.abc import Callable
from typing import NamedTuple

from tests.deeplearn.optimizers import problem


class Case(NamedTuple):
    """A class of torch.optim, its arguments as a function of our hyperparameters, and whether it decays by itself."""

    name: str
    arguments: Callable[[dict], dict] = lambda h: {}
    decays: bool = True


def betas(h):
    return {"betas": (h["b1"], h["b2"]), "eps": h["eps"]}


def renamed(**names):
    """The arguments that are called otherwise there."""
    return lambda h: {theirs: h[ours] for theirs, ours in names.items()}


def rprop(h):
    sizes = (h["learning_rate"] * h["smallest"], h["learning_rate"] * h["largest"])
    return {"etas": (h["shrink"], h["grow"]), "step_sizes": sizes}


CASES = {
    "gradient_descent": Case("SGD"),
    "sgd": Case("SGD"),
    "minibatch_sgd": Case("SGD"),
    "momentum": Case("SGD", renamed(momentum="momentum")),
    "nesterov": Case("SGD", lambda h: {"momentum": h["momentum"], "nesterov": True}),
    "adagrad": Case("Adagrad", renamed(initial_accumulator_value="initial_accumulator_value", eps="eps")),
    "adadelta": Case("Adadelta", renamed(rho="rho", eps="eps")),
    "rmsprop": Case("RMSprop", renamed(alpha="decay", eps="eps", centered="centered")),
    "adam": Case("Adam", betas),
    "adamax": Case("Adamax", betas),
    "nadam": Case("NAdam", lambda h: betas(h) | {"momentum_decay": h["momentum_decay"]}),
    "amsgrad": Case("Adam", lambda h: betas(h) | {"amsgrad": True}),
    "adamw": Case("AdamW", betas),
    "adamaxw": Case("Adamax", betas, decays=False),
    "radam": Case("RAdam", betas),
    "rprop": Case("Rprop", rprop),
}


def path(case: Case, h: dict, rates: list[float]) -> problem.Path:
    """The path at these rates; torch is asked to keep its own numbers in float64."""
    import torch

    decay = h.get("weight_decay", 0.0)
    params = {name: torch.tensor(w, requires_grad=True) for name, w in problem.split(problem.START).items()}
    groups = [
        {"params": [w], **({"weight_decay": decay * problem.decays(name)} if case.decays and decay else {})}
        for name, w in params.items()
    ]
    result = []
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = getattr(torch.optim, case.name)(groups, lr=rates[0], **case.arguments(h))
        for t, rate in enumerate(rates):
            _, grads = problem.value_and_grad({name: w.detach().numpy() for name, w in params.items()}, t)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for name, w in params.items():
                w.grad = torch.tensor(grads[name])
                if not case.decays and problem.decays(name):
                    w.data.mul_(1 - rate * decay)
            optimizer.step()
            result.append({name: w.detach().numpy().copy() for name, w in params.items()})
    finally:
        torch.set_default_dtype(torch.float32)
    return problem.Path(result, result)
