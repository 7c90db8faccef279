"""manifest.json: what lies in a directory, a run or a study, what it was made with, and which process works in it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from deeplearn import files, identity
from deeplearn.errors import UserError
from deeplearn.files import in_bucket, locate, writing
from deeplearn.identity import source as sources
from deeplearn.training import start

MANIFEST = "manifest.json"
STUDY = "study.json"
LOCK = ".lock"
USES = {"run": "`deeplearn evaluate` and `train` use a run", "study": "`deeplearn compare` and `report` use a study"}


def admit(
    workdir: str | os.PathLike,
    identified: identity.Identity,
    config: Mapping[str, Any],
    source: sources.Source,
    command: Sequence[str],
    accept: Collection[str] = (),
) -> dict[str, Any]:
    """The manifest after a start of a run in `workdir`, if it may start there; `write` records it. Needs the `lock`.

        kind                    "run"
        id                      the hash of the identity, which is in every checkpoint
        config                  the identity's, and the mesh
        identity                source, data, versions, implementations; see deeplearn.identity
        experiment, modules     where the source files were; a copy is in `source`
        libraries               the installed packages that these files import
        seed                    the config's
        command                 the command line, quoted for a shell
        python, cores           the version, and the CPU cores that the process may use
        git                     {"commit": ..., "dirty": ...} of the library's code, None outside git
        devices                 {"platform": ..., "kind": ..., "count": ...}
        started                 ISO 8601, with the zone
        resumed                 of each later start: id, command, git, python, devices, cores and started; "accepted",
                                the differences; "changed", the sections that differ; where the files were, if elsewhere

    Args:
      workdir: an existing directory.
      identified: what the run is now.
      config: the whole config, nested dictionaries of what JSON can hold.
      source: the files that it was built from.
      command: the command line.
      accept: sections of the identity that may differ from those of the last start.

    Raises:
      UserError: the directory holds something else.
    """
    check_kind(workdir, "run")
    launch = {**start.describe(command), "id": identity.digest(identified)}
    place = sources.as_json(source)
    rest = {name: section for name, section in identified.items() if name != "config"}
    if exists(workdir):
        manifest = read(workdir, "run")
        there = current(manifest)
        accepted = identity.check(workdir, there, identified, accept)
        if "source" not in there:
            logging.warning("%s", unproven(workdir))
        changed = {name: section for name, section in rest.items() if there.get(name) != section}
        if there["config"] != identified["config"]:
            changed["config"] = identified["config"]
        launch |= {"accepted": accepted} if accepted else {}
        launch |= {"changed": changed} if changed else {}
        if "source" in changed or not sources.inside(source, workdir):  # the copy there is executed on request only
            launch |= place if place != sources.as_json(source_of(manifest)) else {}
        manifest["resumed"].append(launch)
    else:
        _check_checkpoints(workdir, launch["id"])
        # The identity's config has what the experiment filled in, such as a batch size of 0 that means its own.
        config = json.loads(json.dumps({**config, **identified["config"]}, allow_nan=False))
        manifest = {"kind": "run", **launch, "config": config, "identity": rest, **place, "seed": config.get("seed")}
        manifest |= {"resumed": []}
    return manifest


def write(workdir: str | os.PathLike, manifest: Mapping[str, Any], source: sources.Source) -> None:
    """Keep a manifest from `admit`, and a copy of the source files.

    Raises:
      UserError: they cannot be written; the manifest is as it was.
    """
    sources.keep(source, workdir)
    files.write_json(locate(workdir) / MANIFEST, manifest)


def write_study(workdir: str | os.PathLike, study: Mapping[str, Any], path: str, command: Sequence[str]) -> dict:
    """Record a start of the study in `workdir`: kind, the study, the file that declares it, and how it was started.

    Args:
      workdir: the directory of the study.
      study: its fields, see `comparison.study.as_json`.
      path: of the file that declares it.
      command: the words of the command line.
    """
    launch = start.describe(command)
    if exists(workdir):
        manifest = read(workdir, "study")
        manifest["resumed"].append(launch)
    else:
        manifest = {"kind": "study", "config": study, "experiment": path, **launch, "resumed": []}
    files.write_json(locate(workdir) / MANIFEST, manifest)
    return manifest


def kind(workdir: str | os.PathLike) -> str | None:
    """What lies in `workdir`: "run", "study", or None for neither.

    Raises:
      UserError: a file that would tell cannot be read.
    """
    place = locate(workdir)
    if files.present(place / MANIFEST):
        manifest = files.read_json(place / MANIFEST)
        config, said = manifest.get("config"), manifest.get("kind")
        if said not in (None, *USES) or not isinstance(config, dict):
            raise UserError(f"{place / MANIFEST} is damaged (it says neither run nor study); restore it from a copy")
        return said or ("study" if "workloads" in config else "run")  # before manifests had a kind
    return "study" if files.present(place / STUDY) else None


def check_kind(workdir: str | os.PathLike, expected: str) -> None:
    """Raise a UserError if the directory holds a run where a study is expected, or the other way round."""
    actual = kind(workdir)
    if actual not in (None, expected):
        raise UserError(f"{workdir} holds a {actual}, not a {expected}; {USES[actual]}; choose another --workdir")


def exists(workdir: str | os.PathLike) -> bool:
    """Whether `workdir` has a manifest."""
    return files.present(locate(workdir) / MANIFEST)


def read(workdir: str | os.PathLike, expected: str = "run") -> dict[str, Any]:
    """The manifest of a directory that holds a "run" or a "study".

    Raises:
      UserError: there is no manifest, it cannot be read, or it is of the other kind.
    """
    path = locate(workdir) / MANIFEST
    commands = {"run": "train", "study": "compare"}
    try:
        manifest = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{workdir} is not a {expected}: it has no {MANIFEST}; give the --workdir of a `deeplearn "
            f"{commands[expected]}`"
        ) from error
    check_kind(workdir, expected)
    manifest = {"resumed": [], **manifest}
    wrong = [name for name in ("config", "experiment") if name not in manifest] or _misshapen(manifest)
    for launch in manifest["resumed"] if not wrong else ():
        wrong += ["resumed"] if not isinstance(launch, dict) else _misshapen(launch)
    if wrong:
        raise UserError(f"{path} is damaged ({wrong[0]} is missing or is not what it must be); restore it from a copy")
    if any(id is not None and id != identity.digest(there) for id, there in _starts(manifest)):
        # A file that was edited by hand, its checksum deleted: its checkpoints were not made with what it says.
        raise UserError(f"{path} is damaged (an id in it is not that of its identity); restore it from a copy")
    return manifest


def _misshapen(launch: Mapping[str, Any]) -> list[str]:
    """The fields of a manifest, or of a later start in it, that are not of their form."""
    forms = {
        "config": dict, "experiment": str, "modules": dict, "identity": dict, "changed": dict, "accepted": list,
        "resumed": list, "id": str, "command": str, "libraries": list,
    }  # fmt: skip
    wrong = [name for name, form in forms.items() if not isinstance(launch.get(name, form()), form)]
    if wrong:
        return wrong
    sections = [*launch.get("identity", {}).values(), *launch.get("changed", {}).values()]
    texts = {"modules": launch.get("modules", {}).values(), "libraries": launch.get("libraries", ())}
    wrong = ["identity"] * (not all(isinstance(section, dict) for section in sections))
    return wrong + [name for name, values in texts.items() if not all(isinstance(value, str) for value in values)]


def current(manifest: Mapping[str, Any]) -> identity.Identity:
    """The identity at the last start of a run: what was accepted later replaces what it began with.

    Of a run from before there were identities, the config alone.
    """
    *_, (_, last) = _starts(manifest)
    return last


def _starts(manifest: Mapping[str, Any]) -> Iterator[tuple[str | None, identity.Identity]]:
    """The id, None of older versions, and the identity of each start of a run."""
    config = {name: value for name, value in manifest["config"].items() if name not in identity.MAY_CHANGE}
    there = {"config": config, **manifest.get("identity", {})}
    yield manifest.get("id"), there
    for launch in manifest["resumed"]:
        there = there | launch.get("changed", {})
        yield launch.get("id"), there


def config_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The whole config at the last start; the mesh is that of the first one."""
    kept = {name: manifest["config"][name] for name in identity.MAY_CHANGE if name in manifest["config"]}
    return kept | current(manifest)["config"]


def source_of(manifest: Mapping[str, Any]) -> sources.Source:
    """Where the source files were at the last start."""
    return sources.from_json(next((each for each in reversed(manifest["resumed"]) if "experiment" in each), manifest))


def ids(manifest: Mapping[str, Any]) -> set[str | None]:
    """The hashes that the run's checkpoints may have; None among them if it is from before there were any."""
    return {manifest.get("id"), *(launch["id"] for launch in manifest["resumed"] if "id" in launch)}


def last_id(manifest: Mapping[str, Any]) -> str | None:
    """The hash of the identity at the last start."""
    return next((launch["id"] for launch in reversed(manifest["resumed"]) if "id" in launch), manifest.get("id"))


def unproven(workdir: str | os.PathLike) -> str:
    """What is said of a directory that was written before runs had identities."""
    return (
        f"{workdir} was written by a version that did not record identities: that its experiment's source, its data, "
        "the versions and the implementations are the same as then cannot be proved"
    )


def _check_checkpoints(workdir: str | os.PathLike, id: str) -> None:
    """Refuse to begin a run where checkpoints lie that are not its own."""
    from deeplearn.training import listing

    if any(checkpoint.identity != id for checkpoint in listing.listed(locate(workdir) / "checkpoints")):
        raise UserError(
            f"{workdir} has checkpoints, but no {MANIFEST} that says what run they are of, and they are not of "
            f"this one; restore the {MANIFEST}, or choose another --workdir"
        )


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Hold `workdir`, made if need be, for this process alone; the kernel frees it however the process ends.

    A bucket has no locks, and a lock that no kernel frees would outlive a machine that is taken away: there nothing is
    held, and whoever starts runs sees to it that each workdir has one.

    Raises:
      UserError: another process holds it, or the directory cannot be made.
    """
    if in_bucket(workdir):
        yield
        return
    path = locate(workdir) / LOCK
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        with writing(path):  # disks that many machines see need not have locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                pid = file.read()  # nothing if it has only just taken the lock
                who, stop = (f"process {pid}", f"stop it with `kill {pid}`, ") if pid else ("another process", "")
                raise UserError(
                    f"{who} is at work in {workdir}; wait for it, {stop}or choose another --workdir"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
