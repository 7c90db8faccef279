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

from deeplearn.errors import UserError
from deeplearn.parallel import processes
from deeplearn.training import leaves, listing, reading, stored


class Restored(NamedTuple):
    """A state read back, the metadata saved with it, and its step."""

    state: Any
    metadata: dict[str, Any]
    step: int


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
        for name in _agreed_names(manager, order):
            path = manager.directory / name
            outcome = reading.read(manager.handler, path, abstract_state, functools.partial(check, path))
            if outcome.kind == reading.INTACT:
                record = outcome.record
                return Restored(_as_state(outcome.data, abstract_state), record["metadata"], record["step"])
            if outcome.kind == reading.REFUSED:
                raise UserError(outcome.detail)
            vanished = outcome.kind == reading.VANISHED
            if vanished:  # list again: what replaced it is there by now
                break
            _skip(manager, name, outcome.detail)
        if not vanished:
            return None
    raise listing.changing(manager.directory)


def _agreed_names(manager: Any, order: Callable[[list], list]) -> list[str]:
    """The checkpoints to try, in `order`, as process 0 lists them; skips those whose record is damaged."""
    names, damaged, error = [], {}, None
    if processes.is_main():
        try:
            there = [c for c in listing.listed(manager.directory) if c.name not in manager.damaged]
            damaged = {c.name: c.damage for c in there if c.damage}
            names = [c.name for c in order([c for c in there if not c.damage])]
        except UserError as failure:
            error = str(failure)
    names, damaged, error = processes.decided([names, damaged, error])
    if error:
        raise UserError(error)
    for name, damage in damaged.items():
        _skip(manager, name, damage)
    return names


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
