"""What is compared: a study, declared in a file or by flags, and kept beside its runs."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from deeplearn import experiment, optimizers
from deeplearn.comparison.points import Bounds, grid, halton, rates
from deeplearn.errors import UserError, unknown
from deeplearn.files import replacing

STUDY = "study.json"
HOME = experiment.HOME / "studies"


class Workload(NamedTuple):
    """A learning problem of a study: a name of its own, the experiment's file, and the config."""

    name: str
    path: str
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


def load(path: str) -> dict[str, Any]:
    """The fields of the study file at `path`, or of that name among the studies that came along: its `get_study()`."""
    for candidate in (Path(path), HOME / f"{Path(path).name}.py"):
        if candidate.is_file():
            module = experiment.execute(candidate)
            if not hasattr(module, "get_study"):
                raise UserError(f"{path} is no study: it has no function get_study()")
            return module.get_study()
    raise unknown("study", Path(path).stem, (file.stem for file in HOME.glob("[a-z]*.py")))


def make(**fields) -> Study:
    """The Study of these fields, every mistake in them a UserError.

    `workloads` is a dictionary of names and fields: those of the config that differ from the experiment's own, and
    "experiment", its file, where the name is not the experiment's. A sequence of names will do.

    >>> study = make(workloads={"small": {"experiment": "digits_mlp", "epochs": 2.0}}, optimizers=("adam",), points=4)
    >>> study.workloads[0].name, study.workloads[0].config.epochs
    ('small', 2.0)
    """
    for name in fields:
        if name not in Study._fields:
            raise unknown("study field", name, Study._fields)
    declared = fields.get("workloads") or {}
    declared = declared if isinstance(declared, dict) else {Path(name).stem: {"experiment": name} for name in declared}
    if not declared:
        raise UserError("the study has no workloads; name an experiment or more")

    def workload(name, changes):
        file = str(experiment.find(changes.get("experiment", name)))
        changes = {key: value for key, value in changes.items() if key != "experiment"}
        return Workload(name, file, experiment.configure(file, changes))

    made = Study(**{**fields, "workloads": tuple(workload(*item) for item in declared.items())})
    wanted = made.learning_rates
    made = made._replace(
        optimizers=tuple(made.optimizers), learning_rates=wanted if isinstance(wanted, int) else tuple(wanted)
    )
    check(made)
    return made


def check(study: Study) -> None:
    """Raise UserError for what cannot be searched or counted."""
    for name in ("points", "seeds", "reruns"):
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
    whole = {w.name: {"experiment": w.path, **w.config.to_dict()} for w in study.workloads}
    return json.loads(json.dumps({**study._asdict(), "workloads": whole}))


def write(workdir: Path, study: Study) -> None:
    """Keep the study in `workdir`, in place of the one that it goes on from."""
    with replacing(workdir / STUDY) as temporary:
        temporary.write_text(json.dumps(as_json(study), indent=2) + "\n")


def read(workdir: Path) -> dict[str, Any]:
    """The fields of the study in `workdir`; UserError if there is none."""
    try:
        return json.loads((workdir / STUDY).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{workdir} holds no study; give the --workdir of a `deeplearn compare`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir / STUDY} cannot be read ({error}); run the compare command again") from error


def check_same(workdir: Path, study: Study) -> None:
    """Refuse a study that is not the one in `workdir` with more: what is there would not be comparable with it.

    Workloads, optimizers, points, seeds and reruns may come and go; what they are may not change. The experiment's file
    may have moved.
    """
    if not (workdir / STUDY).exists():
        return
    there, here = read(workdir), as_json(study)

    def refuse(what, old, new):
        raise UserError(
            f"{workdir} holds runs of another study: {what} is {old} there and {new} here; put it back, or choose"
            " another --workdir"
        )

    def compare(group, name, old, new):
        for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "experiment", key)):
            before, after = old.get(key, "absent"), new.get(key, "absent")
            if key == "experiment":
                before, after = Path(before).stem, Path(after).stem
            if before != after:
                refuse(f"{group}.{name}.{key}", before, after)

    for name in there["workloads"].keys() & here["workloads"].keys():
        compare("workloads", name, there["workloads"][name], here["workloads"][name])
    for text in set(there["optimizers"]) & set(here["optimizers"]):
        name = optimizers.parse(text)[0]
        compare("spaces", name, there["spaces"].get(name, {}), here["spaces"].get(name, {}))
