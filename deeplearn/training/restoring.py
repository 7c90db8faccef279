"""Chooses the checkpoint to restore.

Process 0 lists them for all processes. Damaged ones are skipped; if one vanishes, they are listed again.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from deeplearn import strict_json
from deeplearn.errors import UserError
from deeplearn.parallel import processes
from deeplearn.training import leaves, listing, reading, stored


class Restored(NamedTuple):
    """A state read back.

    Fields:
      state: the arrays.
      metadata: what was saved with it.
      step: its step.
      metric: the value that the best is chosen by, None if it was saved without one.
      damaged: the steps of damaged checkpoints that come before it in the order, or may.
    """

    state: Any
    metadata: dict[str, Any]
    step: int
    metric: float | None = None
    damaged: tuple[int, ...] = ()


def described(restored: Restored, best_step: int | None = None) -> tuple[str, str]:
    """What a checkpoint is among those of its run, and why it is not the best; an empty text if it is.

    Args:
      restored: from `checkpoints.restore_best`, or from `restore_latest` if that has none; its metadata may have the
        `best_step` of a run's progress.
      best_step: that of the best if it is known; 0 if no evaluation had a best.

    >>> described(Restored(None, {}, 5, 0.9)), described(Restored(None, {}, 5, 0.9), best_step=5)
    (('best checkpoint', ''), ('best checkpoint', ''))
    >>> described(Restored(None, {}, 5, 0.9, (7,)))
    ('best intact checkpoint', 'a damaged one may be better: step 7')
    >>> described(Restored(None, {"best_step": 7}, 9))
    ('last intact checkpoint', 'the best, of step 7, is damaged or gone')
    >>> described(Restored(None, {"best_step": 0}, 9))
    ('last checkpoint', 'no evaluation has given a finite value')
    """
    scored = restored.metric is not None
    if scored and restored.step == (restored.step if best_step is None and not restored.damaged else best_step):
        return "best checkpoint", ""
    known = restored.metadata.get("best_step") if best_step is None and not scored else best_step
    kind = "best intact checkpoint" if scored else "last intact checkpoint"
    if known:
        return kind, f"the best, of step {known:,}, is damaged or gone"
    if restored.damaged:
        return kind, f"a damaged one may be better: step {', '.join(f'{step:,}' for step in restored.damaged)}"
    return "last checkpoint", "no evaluation has given a finite value"


@jax.transfer_guard("allow")  # to read a file is to transfer arrays, here and in Orbax
def restore(manager: Any, abstract_state: Any, order: Callable[[list], list]) -> Restored | None:
    """The first intact checkpoint in an order, None if there is none; the same on every process.

    Args:
      manager: from `checkpoints.open`.
      abstract_state: a tree of `jax.ShapeDtypeStruct` or arrays.
      order: the checkpoints to try, from a list of `listing.Checkpoint`, by step.

    Raises:
      UserError: a checkpoint is of another run or another model, or it cannot be read and is not proven damaged.
    """

    def check(path: pathlib.Path, record: dict[str, Any]) -> None:
        _check_same_run(manager, path, record)
        stored.check_same_model(path, record, abstract_state)

    for _ in range(listing.TRIES):
        vanished = False
        names, damaged = _agreed_names(manager, order)
        for name in names:
            if name in manager.damaged:  # since it was read earlier
                damaged.append(name)
                continue
            path = manager.directory / name
            outcome = reading.read(manager.handler, path, abstract_state, functools.partial(check, path))
            if outcome.kind == reading.INTACT:
                record, steps = outcome.record, sorted(int(name.split("-")[0]) for name in damaged)
                state, metadata = _as_state(outcome.data, abstract_state), strict_json.decode(record["metadata"])
                return Restored(state, metadata, record["step"], record["metric"], tuple(steps))
            if outcome.kind == reading.REFUSED:
                raise UserError(outcome.detail)
            vanished = outcome.kind == reading.VANISHED
            if vanished:  # list again: what replaced it is there by now
                break
            _skip(manager, name, outcome.detail)
            damaged.append(name)
        if not vanished:
            return None
    raise listing.changing(manager.directory)


def _agreed_names(manager: Any, order: Callable[[list], list]) -> tuple[list[str], list[str]]:
    """The checkpoints in `order`, as process 0 lists them, and those whose record is damaged, which are skipped."""
    names, damaged, error = [], {}, None
    if processes.is_main():
        try:
            there = listing.listed(manager.directory)
            damaged = {c.name: c.damage for c in there if c.damage}
            names = [c.name for c in order([c for c in there if not c.damage])]
        except UserError as failure:
            error = str(failure)
    names, damaged, error = processes.decided([names, damaged, error])
    if error:
        raise UserError(error)
    for name, damage in damaged.items():
        if name not in manager.damaged:
            _skip(manager, name, damage)
    return names, list(damaged)


def _skip(manager: Any, name: str, damage: str) -> None:
    logging.warning("skipped the damaged checkpoint %s: %s", manager.directory / name, damage)
    manager.damaged.add(name)


def is_ours(manager: Any, identity: str | None) -> bool:
    """Whether checkpoints with this identity belong to the manager's run."""
    return manager.identity is None or identity == manager.identity or identity in manager.accepted


def _check_same_run(manager: Any, path: pathlib.Path, record: dict[str, Any]) -> None:
    identity = record.get("identity")  # older records have none
    if not is_ours(manager, identity):
        its = "it has no identity" if identity is None else f"its identity is {identity}"
        raise UserError(
            f"the checkpoint {path} is of another run: {its}, this run's is {manager.identity}; "
            "move it away, or choose another --workdir"
        )


def _as_state(data: dict[str, jax.Array], abstract_state: Any) -> Any:
    restored = []
    for name, leaf in leaves.named(abstract_state).items():
        words = leaves.abstract_data(leaf)  # what was empty is not in the files
        array = data[name] if words.size else jnp.zeros(words.shape, words.dtype, device=words.sharding)
        restored.append(leaves.restore(leaf, array))
    return jax.tree.unflatten(jax.tree.structure(abstract_state), restored)
