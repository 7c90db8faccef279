"""The one idea: a learning problem is a pure loss."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Task(NamedTuple):
    """A learning problem, as four pure functions.

    Fields:
      init: `rng -> (params, model_state)`; `model_state` holds what changes without a gradient, {} if nothing does.
      loss: `(params, model_state, batch, rng) -> (loss, (model_state, metrics))`, loss a float32 scalar, metrics a
        dictionary of scalars. Each may be a Mean instead, where examples have weights: a batch in parts then has the
        loss that it has in one.
      evaluate: `(params, model_state, batch, rng) -> {name: Mean}`. Rows whose `batch["mask"]` is 0 are padding and
        count for nothing; without a mask all rows count.
      predict: `(params, model_state, batch) -> outputs`, logits or values, one a row.
    """

    init: Callable[..., tuple[Any, Any]]
    loss: Callable[..., tuple[Any, tuple[Any, dict[str, Any]]]]
    evaluate: Callable[..., dict[str, Any]]
    predict: Callable[..., Any]
