"""Optimizers by name: Optax transformations with defaults, and hyperparameters that a vmap can carry."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from deeplearn import spec
from deeplearn.errors import UserError, unknown
from deeplearn.optimizers import transformations
from deeplearn.optimizers.table import OPTIMIZERS, Range, Spec
from deeplearn.roles import by_shape
from deeplearn.spec import split_list

__all__ = [
    "OPTIMIZERS",
    "Optimizer",
    "Range",
    "Spec",
    "current_learning_rate",
    "make",
    "parse",
    "split_list",
    "with_hyperparameters",
]


class Optimizer(NamedTuple):
    """An optimizer whose hyperparameters are leaves of its state.

    Fields:
      name: its name in the table.
      batch_size: None for the experiment's, 1, or "full" for the whole training set.
      init: `(params, hyperparameters={}) -> opt_state`; hyperparameters replace those of `make` and may be
        traced, so that a sweep can vmap over them.
      update: `(grads, opt_state, params, *, value, value_fn, grad_fn) -> (updates, opt_state)`; value is the
        loss at params, and value_fn and grad_fn give loss and gradient of the same batch at other params.
      evaluation_params: `(opt_state, params) -> params`, those to evaluate.
    """

    name: str
    batch_size: int | str | None
    init: Callable[..., Any]
    update: Callable[..., tuple[Any, Any]]
    evaluation_params: Callable[[Any, Any], Any]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name of the optimizer and the hyperparameters that `text` sets.

    Raises UserError for an unknown optimizer or hyperparameter, and for a value of the wrong type.

    >>> parse("adamw(b1=0.8, bias_correction=False)")
    ('adamw', {'b1': 0.8, 'bias_correction': False})
    """
    name, given = spec.parse(text)
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    entry = OPTIMIZERS[name]
    defaults = {"learning_rate": entry.learning_rate, **entry.hyperparameters}
    return name, spec.settings("optimizer", name, given, defaults)


def make(
    text: str,
    *,
    learning_rate: float | None = None,
    schedule: Callable | None = None,
    weight_decay: float | None = None,
    clip_norm: float = 0.0,
    ema: float = 0.0,
    max_norm: float = 0.0,
    roles: Callable[[Any], Any] = by_shape,
) -> Optimizer:
    """The optimizer that `text` names, and what goes around it; `text` has the last word.

    Args:
      text: the name and hyperparameters, see `parse`.
      learning_rate: the peak; None for the default.
      schedule: step -> factor on the peak, or a stateful one, see deeplearn.schedules; None for 1.
      weight_decay: None for the default; on kernels and embeddings only, by the optimizer's own rule if it has
        one, else w <- w - rate * weight_decay * w.
      clip_norm: the largest global norm of the gradients; 0 for none.
      ema: the decay of the average of the parameters that is evaluated; 0 for none.
      max_norm: the largest norm of a unit's incoming weights; 0 for none.
      roles: `params -> tree of Role`, which of them are weights; by their shapes, unless a loss says more, see
        deeplearn.roles.

    State and arithmetic have float32 at least, or the parameters' dtype if it is wider. The floats among the
    hyperparameters, and among those arguments that are not 0, are leaves of the state's `hyperparams`; `schedule` there
    is the factor of the last step.

    Raises:
      UserError: what `parse` raises, and a number out of its range.

    >>> optimizer = make("momentum(momentum=0.5)", learning_rate=0.1)
    >>> params = {"kernel": jnp.ones((1, 2))}
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(params, state, params)
    >>> updates["kernel"]
    Array([[-0.1, -0.1]], dtype=float32)
    >>> {name: round(float(x), 3) for name, x in state.hyperparams.items()}
    {'learning_rate': 0.1, 'momentum': 0.5, 'schedule': 1.0}
    """
    name, given = parse(text)
    entry = OPTIMIZERS[name]
    values = {"learning_rate": entry.learning_rate, **entry.hyperparameters}
    around = {"clip_norm": clip_norm, "ema": ema, "max_norm": max_norm}
    if learning_rate is not None:
        values["learning_rate"] = float(learning_rate)
    if weight_decay is not None:
        (values if "weight_decay" in values else around)["weight_decay"] = float(weight_decay)
    values |= given
    around = {key: float(value) for key, value in around.items() if value != 0}
    check(name, values | around)
    fixed = {key: value for key, value in values.items() if not isinstance(value, float)}
    leaves = {key: value for key, value in values.items() if isinstance(value, float)} | around

    def evaluated(state, params):
        return entry.evaluation_params(state["optimizer"], params)

    def transformation(learning_rate, schedule, clip_norm=None, ema=None, max_norm=None, **hyperparameters):
        rate = _rate(learning_rate, schedule)
        decay = None if entry.own_decay else hyperparameters.pop("weight_decay", None)
        by_role = {"roles": roles} if entry.by_role else {}
        optimizer = entry.make(rate, **by_role, **fixed, **hyperparameters)
        if decay is not None:
            optimizer = transformations.decoupled_decay(optimizer, decay, lambda state: rate, roles)
        if clip_norm is not None:
            optimizer = transformations.clip_gradients(optimizer, clip_norm)
        project = optax.identity() if max_norm is None else transformations.project_to_max_norm(max_norm, roles)
        chain = optax.named_chain(("optimizer", optimizer), ("max_norm", project))
        chain = chain if ema is None else transformations.average(chain, ema, evaluated)
        return transformations.in_float32(chain)

    def injected(params, hyperparameters):
        schedules = {"schedule": schedule or optax.constant_schedule(1.0)}
        return inject(transformation, leaves | hyperparameters | schedules, transformations.widest(params))

    def init(params, hyperparameters=None):
        chosen = hyperparameters or {}
        check_names(chosen, leaves)
        # Copies: a buffer that was both the parameters' and the state's could not be donated as both.
        return jax.tree.map(jnp.copy, injected(params, chosen).init(params))

    def update(grads, opt_state, params, *, value=None, value_fn=None, grad_fn=None):
        extra = {"value": value, "value_fn": value_fn, "grad_fn": grad_fn}
        return injected(params, {}).update(grads, opt_state, params, **extra)

    def evaluation_params(opt_state, params):
        chosen = transformations.averaged if "ema" in around else evaluated
        wide = transformations.widen(params)
        result = chosen(opt_state.inner_state, wide)
        return params if result is wide else transformations.narrow(result, params)

    return Optimizer(name, entry.batch_size, init, update, evaluation_params)


def inject(transformation: Callable, values: dict[str, Any], dtype):
    """`optax.inject_hyperparams` of a function of any keywords; Optax reads their names from a signature."""

    def factory(**values):
        return transformation(**values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    factory.__signature__ = inspect.Signature([inspect.Parameter(key, keyword) for key in values])
    return optax.inject_hyperparams(factory, hyperparam_dtype=dtype)(**values)


# The decay rates of averages are below 1; of the other numbers only values of a loss may be negative.
FRACTIONS = ("adam_b1", "adam_b2", "b1", "b2", "b3", "beta", "decay", "ema", "momentum")
DECAYS = (("adadelta", "rho"),)  # SAM's rho is a radius
LOSSES = ("f_min", "lower_bound")
DIVISORS = (("schedule_free_sgd", "b1"), ("schedule_free_adamw", "b1"))


def check(name: str, values: dict[str, Any]) -> None:
    """Raise UserError for the first number that makes no sense."""
    for key, value in values.items():
        if (key in FRACTIONS or (name, key) in DECAYS) and not 0 <= value < 1:
            raise UserError(f"optimizer {name}: {key}={value} is out of range; it must be in [0, 1)")
        if isinstance(value, float) and not (0 <= value < math.inf or key in LOSSES):
            raise UserError(f"optimizer {name}: {key}={value} is out of range; it must be at least 0")
        if value == 0 and (name, key) in DIVISORS:
            raise UserError(f"optimizer {name}: {key}={value} is out of range; it must be above 0")
        if type(value) is int and value < 1:
            raise UserError(f"optimizer {name}: {key}={value} is out of range; it must be at least 1")


def check_names(hyperparameters, leaves) -> None:
    for key in hyperparameters:
        if key not in leaves or key == "schedule":
            raise unknown("hyperparameter", key, set(leaves) - {"schedule"})


def with_hyperparameters(opt_state, hyperparameters: dict[str, Any]):
    """The state with some of its hyperparameters set, from the next step on.

    Those that only `init` reads (adagrad's initial_accumulator_value, prodigy's d0, ...) must be given there.
    Raises UserError for a name that the state does not have.
    """
    old = opt_state.hyperparams
    check_names(hyperparameters, old)
    new = {key: jnp.asarray(value, old[key].dtype) for key, value in hyperparameters.items()}
    return opt_state._replace(hyperparams={**old, **new})


def current_learning_rate(opt_state) -> jax.Array:
    """The peak times the schedule's factor, as of the last step."""
    return _rate(opt_state.hyperparams["learning_rate"], opt_state.hyperparams["schedule"])


def _rate(peak: jax.Array, factor: jax.Array) -> jax.Array:
    return peak * factor.astype(peak.dtype)  # of an int32 step a schedule makes float32
