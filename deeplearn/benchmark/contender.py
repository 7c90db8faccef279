"""What takes part: a way to train a case, and the table of them."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from deeplearn.benchmark.cases import Case


class Contender(NamedTuple):
    """A training run that goes on when asked.

    Fields:
      run: `steps -> loss`, trains so many steps and returns the last loss once all is done.
      parameters: how many numbers it trains.
      detail: what sets it apart from the other candidates for its place, "" if nothing does.
    """

    run: Callable[[int], float]
    parameters: int
    detail: str = ""


class Unavailable(Exception):
    """A peer cannot take part here; the message says why."""


class Entry(NamedTuple):
    """Who may take part, without its framework imported.

    Fields:
      title: its name, for people.
      package: what must be installed.
      module, function: where its candidates come from, `Case -> list of Contender`; the quickest is measured.
    """

    title: str
    package: str
    module: str
    function: str = "candidates"


CONTENDERS = {
    "ours": Entry("ours", "jax", "ours"),
    "flax": Entry("plain Flax", "flax", "peers_flax"),
    "torch": Entry("PyTorch, eager", "torch", "peers_torch"),
    "compiled": Entry("PyTorch, compiled", "torch", "peers_torch", "compiled_candidates"),
}


def candidates(name: str, case: Case) -> list[Contender]:
    """The candidates for the place `name` in this case; Unavailable where it cannot take part."""
    entry = CONTENDERS[name]
    if find_spec(entry.package) is None:
        raise Unavailable("not installed")
    return getattr(import_module(f"deeplearn.benchmark.{entry.module}"), entry.function)(case)
