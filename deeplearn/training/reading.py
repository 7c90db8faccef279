"""Reads one checkpoint, on all processes alike, and distinguishes damage from a failure to read.

Only what is proven damaged counts as damaged: it can be read from the first byte to the last, and two attempts to
restore it find it wrong. Any other failure, such as a disk error or too many open files, may be over a moment later.
"""

import gc
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from deeplearn.errors import UserError
from deeplearn.parallel import processes
from deeplearn.training import leaves, orbax_errors, stored

INTACT, DAMAGED, VANISHED, REFUSED = "intact", "damaged", "vanished", "refused"
_WORST_FIRST = (REFUSED, VANISHED, DAMAGED, INTACT)
_ATTEMPTS = 2


class Outcome(NamedTuple):
    """What came of reading a checkpoint.

    Fields:
      kind: INTACT, DAMAGED, VANISHED (its writer deleted it meanwhile) or REFUSED.
      detail: the damage in a few words, or the error's line of a refusal.
      record: of an intact checkpoint.
      data: its arrays by path, without the empty ones.
    """

    kind: str
    detail: str = ""
    record: Any = None
    data: Any = None


def read(handler: Any, path: pathlib.Path, abstract_state: Any, check: Callable[[dict[str, Any]], None]) -> Outcome:
    """Read a checkpoint; the kind and the detail are the same on every process.

    Args:
      handler: Orbax's, for the whole checkpoint.
      path: of the checkpoint.
      abstract_state: a tree of `jax.ShapeDtypeStruct` or arrays, whose shardings the arrays get.
      check: raises a UserError if the record is not acceptable.
    """
    named = leaves.named(abstract_state)  # outside of the attempts: a fault of the caller is no damage
    abstract = {name: leaves.abstract_data(leaf) for name, leaf in named.items()}
    item = {name: leaf for name, leaf in abstract.items() if leaf.size}
    for _ in range(_ATTEMPTS):
        with orbax_errors.quiet_coroutines():
            outcome = _agreed(_attempt(handler, path, item, check))
            if outcome.kind == INTACT:
                outcome = _verified(path, outcome)
            if outcome.kind != INTACT:
                time.sleep(0.02)  # other reads that are in progress end, and release their coroutines
                gc.collect()
        if outcome.kind != DAMAGED:
            break
    return outcome


def _attempt(handler: Any, path: pathlib.Path, item: dict[str, Any], check: Callable) -> Outcome:
    try:
        record = stored.read_record(path)
        check(record)
        return Outcome(INTACT, record=record, data=_arrays(handler, path, item))
    except UserError as error:
        return Outcome(REFUSED, str(error))
    except Exception as error:  # damaged files make Orbax raise errors of any type
        return _judged(path, error)


def _arrays(handler: Any, path: pathlib.Path, item: dict[str, Any]) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp
    from etils import epath

    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=item, restore_args=restore_args))
    # The checkpointer would wait for all processes at the end, forever if one of them fails.
    return handler.restore(epath.Path(path), args=args).state


def _verified(path: pathlib.Path, outcome: Outcome) -> Outcome:
    """The outcome after a comparison of the arrays' fingerprints, which all processes compute together."""
    try:
        damage = stored.altered(outcome.record, outcome.data)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        raise stored.unreadable(path, error) from error
    return outcome if damage is None else _agreed(_judged(path, ValueError(damage), damage))


def _judged(path: pathlib.Path, error: Exception, damage: str | None = None) -> Outcome:
    """What an error says about the checkpoint.

    Args:
      path: of the checkpoint.
      error: why it could not be restored.
      damage: in a few words; None for those of `error`.
    """
    trouble = None
    if orbax_errors.is_refusal(error) or isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)):
        trouble = error
    elif not isinstance(error, stored.Damaged):  # which the record alone proves
        trouble = _error_of(stored.read_through, path)
    try:
        if not stored.is_complete(path):
            return Outcome(VANISHED)
    except Exception as failure:  # the clients of buckets have no base class for what can go wrong
        trouble = failure
    if trouble:
        return Outcome(REFUSED, str(stored.unreadable(path, trouble)))
    return Outcome(DAMAGED, damage or (str(error) if isinstance(error, stored.Damaged) else orbax_errors.cause(error)))


def _error_of(function: Callable[[pathlib.Path], None], path: pathlib.Path) -> Exception | None:
    try:
        function(path)
    except Exception as error:  # the clients of buckets have no base class for what can go wrong
        return error
    return None


def _agreed(outcome: Outcome) -> Outcome:
    """The outcome of the process that fared worst; only if it is INTACT does each keep its arrays."""
    kind, detail = min(
        processes.gathered([outcome.kind, outcome.detail]), key=lambda result: _WORST_FIRST.index(result[0])
    )
    return outcome if kind == INTACT else Outcome(kind, detail)
