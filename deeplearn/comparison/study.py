"""What is compared: a study, declared in a file or by flags."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from deeplearn import experiment, optimizers
from deeplearn.comparison.points import Bounds, grid, halton, rates
from deeplearn.errors import UserError, unknown
from deeplearn.identity.source import Source, collect, execute

HOME = experiment.HOME / "studies"
RESERVED = ("runs", "tensorboard", "source", "checkpoints")  # directories of ours beside those of the workloads
ENDINGS = (".html", ".json", ".jsonl", ".md", ".csv", ".parquet", ".png", ".pdf", ".txt")


class Workload(NamedTuple):
    """A learning problem of a study.

    Fields:
      name: its own.
      source: the files of the experiment, see deeplearn.identity.source.
      config: the experiment's, with the study's changes.
    """

    name: str
    source: Source
    config: Any


class Study(NamedTuple):
    """Workloads x optimizers x points x seeds.

    Fields:
      workloads: see Workload.
      optimizers: names, with what they set: adam, adamw(b1=0.8).
      points: so many quasi-random points over each optimizer's search space; None: a grid of learning rates.
      learning_rates: how many, evenly apart in log over the optimizer's range, or the rates themselves.
      spaces: {optimizer: {hyperparameter: (low, high)}}, in place of the ends in the table of optimizers.
      seeds: how many to tune with, from the config's on.
      reruns: how many fresh seeds the best point is run again with.
      together, lanes: how the runs share the devices, see deeplearn.comparison.lanes; None: by its rule.
    """

    workloads: tuple[Workload, ...]
    optimizers: tuple[str, ...] = (
        "minibatch_sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "lion", "muon",
    )  # fmt: skip
    points: int | None = None
    learning_rates: int | tuple[float, ...] = 8
    spaces: dict[str, Bounds] = {}
    seeds: int = 3
    reruns: int = 5
    together: bool | None = None
    lanes: int | None = None


def load(path: str) -> dict[str, Any]:
    """The fields of the study file at `path`, or of that name among the studies that came along: its `get_study()`."""
    file = experiment.find_in(HOME, "study", path)
    module = execute(Source(file))
    if not hasattr(module, "get_study"):
        raise UserError(f"{file} is not a study: it has no function get_study()")
    return module.get_study()


def make(**fields) -> Study:
    """The Study of these fields, every mistake in them a UserError.

    `workloads` is a dictionary of names and fields: those of the config that differ from the experiment's own, and
    "experiment", its file or its Source, where the name is not the experiment's. A sequence of names will do.

    >>> study = make(workloads={"small": {"experiment": "digits_mlp", "epochs": 2.0}}, optimizers=("adam",), points=4)
    >>> study.workloads[0].name, study.workloads[0].config.epochs
    ('small', 2.0)
    """
    for name in fields:
        if name not in Study._fields:
            raise unknown("study field", name, Study._fields)
    declared = fields.get("workloads") or {}
    if not isinstance(declared, dict):
        if twice := [path for path in declared if [Path(other).stem for other in declared].count(Path(path).stem) > 1]:
            raise UserError(f"the workloads {', '.join(twice)} have one name; name them apart in a study's file")
        declared = {Path(path).stem: {"experiment": path} for path in declared}
    if not declared:
        raise UserError("the study has no workloads; name an experiment or more")

    def workload(name, changes):
        check_name(name)
        source = changes.get("experiment", name)
        source = source if isinstance(source, Source) else collect(experiment.find(source))
        changes = {key: value for key, value in changes.items() if key != "experiment"}
        return Workload(name, source, experiment.configure(source, changes))

    made = Study(**{**fields, "workloads": tuple(workload(*item) for item in declared.items())})
    wanted = made.learning_rates
    made = made._replace(
        optimizers=tuple(made.optimizers), learning_rates=wanted if isinstance(wanted, int) else tuple(wanted)
    )
    check(made)
    return made


def check_name(name: str) -> None:
    """Raise UserError for a workload's name that is not one plain part of a path, or that a file of ours has."""
    plain = name.isprintable() and not set("/\\") & set(name) and not name.startswith(".") and 0 < len(name) <= 100
    if not plain or name in RESERVED or name.endswith(ENDINGS):
        raise UserError(
            f"{name!r} cannot be a workload's name, for its runs lie in a directory of that name; use letters, digits, "
            "- and _"
        )


def check(study: Study) -> None:
    """Raise UserError for what cannot be searched or counted."""
    for name in ("points", "seeds", "reruns", "lanes"):
        value, least = getattr(study, name), 0 if name == "reruns" else 1
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"the study's {name} is {value}; it must be a whole number, at least {least}")
    if not study.optimizers:
        raise UserError("the study has no optimizers; name one or more")
    names = {optimizers.parse(text)[0] for text in study.optimizers}
    for name in study.spaces:
        if name not in names:
            raise unknown("optimizer in the study's spaces", name, names)
    wanted = study.learning_rates
    if min([wanted] if isinstance(wanted, int) else wanted or [0]) <= 0:
        raise UserError(f"the study's learning_rates, {wanted}, are neither a number of rates nor rates above 0")
    for text in study.optimizers:
        search(study, text, 0)


def search(study: Study, text: str, seed: int) -> list[dict[str, float]]:
    """The points of the optimizer `text`; quasi-random ones are scrambled by the seed."""
    bounds = study.spaces.get(optimizers.parse(text)[0])
    if study.points:
        return halton(text, study.points, seed, bounds)
    wanted = study.learning_rates
    return grid(text, wanted, bounds) if isinstance(wanted, int) else rates(text, list(wanted))


def seeds(study: Study, workload: Workload) -> range:
    """Those that tune."""
    return range(workload.config.seed, workload.config.seed + study.seeds)


def title(study: Study) -> str:
    """What is compared, in a line.

    >>> title(make(workloads=["digits_mlp"], optimizers=["adam", "lion"]))
    'digits_mlp: 2 optimizers x 8 learning rates x 3 seeds'
    """
    wanted = study.learning_rates
    number = wanted if isinstance(wanted, int) else len(wanted)
    what = f"{study.points} points" if study.points else f"{number} learning rates"
    first = study.workloads[0].name if len(study.workloads) == 1 else f"{len(study.workloads)} workloads"
    return f"{first}: {len(study.optimizers)} optimizers x {what} x {study.seeds} seeds"


def as_json(study: Study) -> dict[str, Any]:
    """The fields that `make` takes, every config in full, as JSON has them."""
    whole = {w.name: {"experiment": str(w.source.experiment), **w.config.to_dict()} for w in study.workloads}
    return json.loads(json.dumps({**study._asdict(), "workloads": whole}))
