"""study.json: the study that a directory holds, and the identity of every run that was ever trained in it.

the fields of deeplearn.comparison.study.Study, as they are now
identities     {workload: [identity, ...]}: what the workload's runs were made with, the last one now; each with its
               "id", which is in the runs' records, "experiment", "modules" and "libraries", see
               deeplearn.identity.source, and "accepted", the differences from the one before that were accepted
searched       {optimizer: its search space}, also of optimizers that are no longer compared
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from deeplearn import files, identity, optimizers
from deeplearn.comparison import study as studies
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.identity.origin import origin
from deeplearn.training.manifest import STUDY, check_kind

ACCEPTABLE = tuple(name for name in identity.SECTIONS if name != "config")  # runs with other configs do not compare


class History(NamedTuple):
    """What study.json holds.

    Fields:
      study: the fields of the Study; none before the first start.
      identities, searched: see above.
    """

    study: dict[str, Any] = {}
    identities: dict[str, list[dict[str, Any]]] = {}
    searched: dict[str, dict[str, Any]] = {}


def read(workdir: Path) -> History:
    """The History in `workdir`, an empty one if there is none.

    Of a directory from before there were identities, those of its workloads are their configs alone, without an id.

    Raises:
      UserError: study.json cannot be read, or the directory holds a run.
    """
    check_kind(workdir, "study")
    try:
        content = files.read_json(workdir / STUDY)
    except (FileNotFoundError, NotADirectoryError):
        return History()
    if wrong := _misshapen(content):
        raise UserError(
            f"{workdir / STUDY} is damaged ({wrong} is missing or is not what it must be); restore it from a copy"
        )
    declared = {name: content[name] for name in studies.Study._fields if name in content}
    old = {name: [_without_identity(entry)] for name, entry in declared["workloads"].items()}
    spaces = {optimizers.parse(text)[0]: {} for text in declared.get("optimizers", ())} | declared.get("spaces", {})
    return History(declared, content.get("identities", old), content.get("searched", spaces))


def existing(workdir: Path) -> History:
    """The History in `workdir`; UserError if it holds no study."""
    history = read(workdir)
    if not history.study:
        raise UserError(f"{workdir} holds no study; give the --workdir of a `deeplearn compare`")
    return history


def ids(history: History, workload: str) -> set[str | None]:
    """The ids that the records of a workload may have; None among them if some are from before there were any."""
    return {entry.get("id") for entry in history.identities.get(workload, ())}


def source_of(workdir: Path, history: History, workload: str, accept: Collection[str], execute_copy: bool):
    """The Source to execute for a workload of the study.

    Args:
      workdir: the study's directory.
      history: what it holds.
      workload: the name.
      accept, execute_copy: see deeplearn.identity.origin.
    """
    entry = history.identities[workload][-1]
    return origin(workdir, sources.from_json(entry), entry.get("source"), accept, execute_copy)


def extended(
    workdir: Path,
    history: History,
    study: studies.Study,
    identities: Mapping[str, identity.Identity],
    accept: Collection[str] = (),
) -> History:
    """The history after a start of `study`: nothing that would make its runs incomparable may have changed.

    Workloads, optimizers, points, seeds and reruns may come and go.

    Args:
      workdir: for messages.
      history: what is there.
      study: what is to be compared.
      identities: of each workload.
      accept: sections of the identity that may differ.

    Raises:
      UserError: names each difference.
    """
    kept = dict(history.identities)
    for workload in study.workloads:
        now, before = identities[workload.name], kept.get(workload.name, [])
        entry = {"id": identity.digest(now), **now, **sources.as_json(workload.source)}
        if before:
            accepted = identity.check(f"{workload.name} in {workdir}", before[-1], now, accept, ACCEPTABLE)
            entry |= {"accepted": accepted} if accepted else {}
        if before and before[-1].get("id") == entry["id"]:
            entry = {**before[-1], **entry}  # with what was accepted when it was new
            before = before[:-1]
        kept[workload.name] = [*before, entry]
    searched = dict(history.searched)
    for name in dict.fromkeys(optimizers.parse(text)[0] for text in study.optimizers):
        space = {key: list(ends) for key, ends in study.spaces.get(name, {}).items()}
        if differ := _fields_that_differ(searched.get(name, space), space):
            raise UserError(
                f"{workdir} holds runs of another study: {', '.join(f'spaces.{name}.{line}' for line in differ)}; put "
                "it back, or choose another --workdir"
            )
        searched[name] = space
    return History(studies.as_json(study), kept, searched)


def write(workdir: Path, history: History) -> None:
    """Keep the history in `workdir`."""
    content = {**history.study, "identities": history.identities, "searched": history.searched}
    files.write_json(workdir / STUDY, content)


def _without_identity(entry: dict[str, Any]) -> dict[str, Any]:
    """What an older study.json says of a workload, in the form of an identity."""
    config = {name: value for name, value in entry.items() if name not in ("experiment", *identity.MAY_CHANGE)}
    return {"config": config, "experiment": entry["experiment"]}


def _misshapen(content: Mapping[str, Any]) -> str | None:
    """The first field of study.json that is not of its form."""

    def named(value, form):
        return isinstance(value, dict) and all(isinstance(item, form) for item in value.values())

    workloads, kept = content.get("workloads"), content.get("identities", {})
    if not workloads or not named(workloads, dict) or not all("experiment" in fields for fields in workloads.values()):
        return "workloads"
    entries = [entry for entries in kept.values() for entry in entries] if named(kept, list) else [None]
    well_formed = all(isinstance(entry, dict) and isinstance(entry.get("config"), dict) for entry in entries)
    declared = workloads if "identities" in content else {}
    if not well_formed or not all(kept.get(name) for name in declared):
        return "identities"
    # A file that was edited by hand, its checksum deleted: its runs were not made with what it says.
    sections = [{name: entry[name] for name in identity.SECTIONS if name in entry} for entry in entries]
    if any(
        entry.get("id", hashed) != hashed for entry, hashed in zip(entries, map(identity.digest, sections), strict=True)
    ):
        return "identities"
    # A report uses these without executing the experiment, which may fill in others when it is built.
    for name, fields in declared.items():
        if any(fields.get(field) != kept[name][-1]["config"].get(field) for field in ("seed", "target")):
            return "workloads"
    if not isinstance(content.get("optimizers", []), list):
        return "optimizers"
    return next((name for name in ("spaces", "searched") if not named(content.get(name, {}), dict)), None)


def _fields_that_differ(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    names = sorted(there.keys() | here.keys())
    return [
        f"{name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
        for name in names
        if there.get(name) != here.get(name)
    ]


def declared(history: History) -> studies.Study:
    """The Study, from what is stored alone: no file of an experiment is executed."""
    workloads = tuple(
        studies.Workload(name, sources.Source(Path(fields["experiment"])), ConfigDict(_without("experiment", fields)))
        for name, fields in history.study["workloads"].items()
    )
    study = studies.Study(**{**history.study, "workloads": workloads})
    studies.check(study)
    return study


def _without(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}
