"""Copies of a run's and a study's directory, what is done in them, and what was done to them before."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from deeplearn.identity import source as sources
from tests.deeplearn import directories

SAME = directories.SEED  # of the run `a`; `b` has the next one


class Places(NamedTuple):
    """What a test may spoil, `a`, `s` and `project`, and what it copies from, `b` and `t`.

    Fields:
      a, b: runs of one experiment that differ in their seed.
      s, t: studies of one experiment that differ in its epochs.
      project: the experiment's files.
      source: the same files as a Source.
    """

    a: Path
    b: Path
    s: Path
    t: Path
    project: Path
    source: sources.Source


def contents(folder, ignored=()):
    """Every file and link below a folder; hidden ones apart, such as .lock."""
    files = [path for path in folder.rglob("*") if path.name not in ignored and not path.name.startswith(".")]
    return {p: os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None for p in files}


# what is done in a directory


def resume(places):
    return directories.train(places.a, places.source)


def resume_other_seed(places):
    return directories.train(places.a, places.source, seed=SAME + 1)


def read(places):
    return directories.read_run(places.a)


def compare(places):
    return directories.compare(places.s, directories.declare())


def report(places):
    return directories.read_study(places.s)


# what was done to it before


def copy(path, other):
    """Put a copy of `path` in the place of `other`; both are `(places) -> path`."""

    def spoil(places):
        source, target = path(places), other(places)
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    return spoil


def edited(path, change, keep_checksum=False):
    """Change the JSON object in a file by hand."""

    def spoil(places):
        content = json.loads(path(places).read_text())
        change(content)
        if not keep_checksum:
            del content["checksum"]
        path(places).write_text(json.dumps(content, indent=2))

    return spoil


def replaced(path, make_other):
    """Put what is no file in the place of a file."""

    def spoil(places):
        file = path(places)
        file.unlink(missing_ok=True)
        make_other(file)

    return spoil


def both(*spoils):
    def spoil(places):
        for each in spoils:
            each(places)

    return spoil


def rewritten(path, old, new):
    def spoil(places):
        content = path(places).read_text()
        assert old in content
        path(places).write_text(content.replace(old, new, 1))

    return spoil


def removed(path):
    return lambda places: path(places).unlink()


def full(path):
    """The disk is full for the file: what is written beside it, to replace it, goes to /dev/full."""

    def spoil(places):
        file = path(places)
        file.with_name(f".{file.stem}.new{file.suffix}").symlink_to("/dev/full")

    return spoil


def mix_checkpoints(places):
    (newest,) = (places.b / "checkpoints").glob("000000003-*")
    shutil.copytree(newest, places.a / "checkpoints" / newest.name)


def of_run(name):
    return lambda places: places.a / name


def of_study(name):
    return lambda places: places.s / name


def of_other(name):
    return lambda places: places.b / name


def record(optimizer="adam", phase="tune", number=0, study="s"):
    def path(places):
        return sorted((getattr(places, study) / "runs" / "digits_mlp" / optimizer).glob(f"{phase}-*"))[number]

    return path


def plan(optimizer="adam"):
    return of_study(f"runs/digits_mlp/{optimizer}/plan.json")


MANIFEST, METRICS = of_run("manifest.json"), of_run("metrics.jsonl")
STUDY, STUDY_MANIFEST = of_study("study.json"), of_study("manifest.json")
CHECKPOINTS = of_run("checkpoints")
KINDS = {
    "a directory": (Path.mkdir, "Is a directory"),
    "a pipe": (os.mkfifo, "it is not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("/nowhere/else"), "the target of this link is missing"),
}
