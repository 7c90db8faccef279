"""What is compared: a study, declared in a file or by flags."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deeplearn import experiment, fields, optimizers
from deeplearn.comparison.points import Bounds, grid, halton, rates
from deeplearn.errors import UserError, unknown
from deeplearn.fields import Field
from deeplearn.identity.source import Source, collect, execute

HOME = experiment.HOME / "studies"
FRESH = 10_000  # from the first tuning seed to the first of the reruns: more tuning seeds do not reach it
RESERVED = ("runs", "tensorboard", "source", "checkpoints")  # directories of ours beside those of the workloads
# What the numbers of a study may be.
FIELDS = {
    "points": Field(int, 1, 10_000, unset=True),
    "seeds": Field(int, 1, FRESH),
    "reruns": Field(int, 0, FRESH),
    "together": Field(bool, unset=True),
    "lanes": Field(int, 1, fields.LARGEST, unset=True),
}
RATES = Field(int, 1, 10_000)  # learning rates of a grid
# Fields of a config that a comparison sets itself or has no use for, and what to do instead.
UNUSED = {
    "optimizer": "name it among the study's optimizers (--optimizers)",
    "learning_rate": "give the study's learning_rates (--learning_rates) or spaces",
    "log_every": "the training loss is that of the steps since the last evaluation: set config.eval_every",
    "checkpoint_every": "finished runs are kept, and no checkpoints: leave it out",
    "patience": "all runs have the same number of steps: set config.steps or config.epochs",
    "mesh": "each run has one device: leave it out",
    "placement": "each run has one device: leave it out",
    "zero": "each run has one device: leave it out",
}
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


def make(*, resumed: bool = False, **declared) -> Study:
    """The Study of these fields, every mistake in them a UserError.

    `workloads` is a dictionary of names and fields: those of the config that differ from the experiment's own, and
    "experiment", its file or its Source, where the name is not the experiment's. A sequence of names will do.

    Args:
      resumed: whether the fields are those of a stored study, whose configs are complete: fields that a comparison
        does not use are no mistake there.
      declared: fields of a Study.

    >>> study = make(workloads={"small": {"experiment": "digits_mlp", "epochs": 2.0}}, optimizers=("adam",), points=4)
    >>> study.workloads[0].name, study.workloads[0].config.epochs
    ('small', 2.0)
    """
    for name in declared:
        if name not in Study._fields:
            raise unknown("study field", name, Study._fields)
    _check_forms(declared)
    named = declared.get("workloads") or {}
    if not isinstance(named, dict):
        if twice := [path for path in named if [Path(other).stem for other in named].count(Path(path).stem) > 1]:
            raise UserError(f"the workloads {', '.join(twice)} have one name; name them apart in a study's file")
        named = {Path(path).stem: {"experiment": path} for path in named}
    if not named:
        raise UserError("the study has no workloads; name an experiment or more")

    def workload(name, changes):
        check_name(name)
        source = changes.get("experiment", name)
        source = source if isinstance(source, Source) else collect(experiment.find(source))
        changes = {key: value for key, value in changes.items() if key != "experiment"}
        return Workload(name, source, experiment.configure(source, changes))

    made = Study(**{**declared, "workloads": tuple(workload(*item) for item in named.items())})
    wanted = made.learning_rates
    made = made._replace(
        optimizers=tuple(dict.fromkeys(made.optimizers)),
        learning_rates=wanted if isinstance(wanted, int) else tuple(wanted),
    )
    check(made)
    if not resumed:
        _check_used(made)
    return made


def _check_used(study: Study) -> None:
    """Raise UserError for a field that was set and that the comparison would ignore."""
    for workload in study.workloads:
        defaults = experiment.load(workload.source).get_config()
        changed = {name: value for name, value in workload.config.items() if value != defaults[name]}
        for name in (name for name in changed if name in UNUSED):
            ignored = f"{workload.name}: config.{name} is {changed[name]!r}, and a comparison ignores it"
            raise UserError(f"{ignored}; {UNUSED[name]}")
        for text in study.optimizers if "weight_decay" in changed else ():
            if "weight_decay" in {**optimizers.parse(text)[1], **search(study, text, 0)[0]}:
                ignored = f"{workload.name}: config.weight_decay is {changed['weight_decay']}, and {text} ignores it"
                raise UserError(f"{ignored}; set it in the brackets of the optimizer, or its range in spaces")
    if study.points and study.learning_rates != Study._field_defaults["learning_rates"]:
        raise UserError("the study has points and learning_rates; points search the rate too: leave out one of them")
    for name, space in study.spaces.items() if not study.points else ():
        for key in space:
            if key != "learning_rate" or not isinstance(study.learning_rates, int):
                raise UserError(f"the study's space of {name}'s {key} is ignored without points; give points")


def _check_forms(declared: Mapping[str, Any]) -> None:
    """Raise UserError for a field that is not of its form: a study's file is Python, and may hold anything."""

    def is_rate(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    def are_ends(ends):
        return isinstance(ends, (list, tuple)) and len(ends) == 2 and all(map(is_rate, ends))

    def each(values, right, form=Collection):
        items, other = (values.values(), ()) if form is dict and isinstance(values, dict) else (values, (str, dict))
        return isinstance(values, form) and not isinstance(values, other) and all(map(right, items))

    def is_text(value):
        return isinstance(value, str)

    def is_dict(value):
        return isinstance(value, dict)

    rates, spaces = declared.get("learning_rates", 8), declared.get("spaces", {})
    workloads = declared.get("workloads") or {}
    forms = {
        "workloads": (each(workloads, is_dict, dict) or each(workloads, is_text), "names, or {name: {field: value}}"),
        "optimizers": (each(declared.get("optimizers", ()), is_text), "a list of names"),
        "learning_rates": (type(rates) is int or each(rates, is_rate), "a number of rates, or a list of rates"),
        "spaces": (
            each(spaces, lambda space: each(space, are_ends, dict), dict),
            "{optimizer: {hyperparameter: (low, high)}}",
        ),
    }
    for name, (right, form) in forms.items():
        if not right:
            raise UserError(f"the study's {name} are {str(declared[name])[:80]!r}; they must be {form}")


def check_name(name: str) -> None:
    """Raise UserError for a workload's name that is not one plain part of a path, or that a file of ours has."""
    plain = isinstance(name, str) and name.isprintable() and not set("/\\") & set(name) and not name.startswith(".")
    fits = plain and 0 < len(name) <= 100 and len(name.encode()) <= 255  # bytes that file systems allow
    if not fits or name in RESERVED or name.endswith(ENDINGS):
        raise UserError(
            f"{name!r} cannot be a workload's name, for its runs lie in a directory of that name; use letters, digits, "
            "- and _"
        )


def check(study: Study) -> None:
    """Raise UserError for what cannot be searched or counted."""
    for name, field in FIELDS.items():
        fields.check(f"the study's {name}", getattr(study, name), field)
    for workload in study.workloads:
        most = fields.SEED.high - (FRESH + study.reruns if study.reruns else study.seeds) + 1
        field = Field(int, 0, most, note="the study's other seeds follow it")
        fields.check(f"{workload.name}: config.seed", workload.config.seed, field)
    if not study.optimizers:
        raise UserError("the study has no optimizers; name one or more")
    names = {optimizers.parse(text)[0] for text in study.optimizers}
    for name in study.spaces:
        if name not in names:
            raise unknown("optimizer in the study's spaces", name, names)
    wanted = study.learning_rates
    if isinstance(wanted, int) and wanted > RATES.high:
        fields.check("the study's learning_rates", wanted, RATES)
    if not all(0 < rate < math.inf for rate in ([wanted] if isinstance(wanted, int) else wanted or [0])):
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
    workloads = {w.name: {"experiment": str(w.source.experiment), **w.config.to_dict()} for w in study.workloads}
    return json.loads(json.dumps({**study._asdict(), "workloads": workloads}, allow_nan=False))
