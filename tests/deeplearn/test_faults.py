"""Invented faults and odd inputs: a directory is used as what it is, or refused in one line that loses nothing."""

import os
import time

import pytest

from deeplearn import experiment
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.parallel import tokens
from deeplearn.training import manifest
from tests.deeplearn import directories
from tests.deeplearn.directories import plain
from tests.deeplearn.spoiling import (
    CHECKPOINTS,
    KINDS,
    MANIFEST,
    METRICS,
    STUDY,
    STUDY_MANIFEST,
    Places,
    both,
    compare,
    contents,
    copy,
    edited,
    full,
    mix_checkpoints,
    of_other,
    of_run,
    plan,
    read,
    record,
    removed,
    replaced,
    report,
    resume,
    resume_other_seed,
    rewritten,
)

NOT_FILES = {
    f"{title} is {kind}": (replaced(path, make_other), act, f"cannot read .*{words}")
    for kind, (make_other, words) in KINDS.items()
    for title, path, act in (
        ("a run's manifest.json", MANIFEST, read),
        ("metrics.jsonl", METRICS, resume),
        ("study.json", STUDY, report),
        ("a study's manifest.json", STUDY_MANIFEST, report),
        ("a run's record", record(), report),
        ("a plan", plan(), report),
    )
}
BEGINS_ANEW = {
    f"a command that writes finds that {title} is {kind}": (replaced(path, make_other), act, f"cannot read .*{words}")
    for kind, (make_other, words) in KINDS.items()
    for title, path, act in (
        ("a run's manifest.json", MANIFEST, resume),
        ("study.json", STUDY, compare),
        ("a study's manifest.json", STUDY_MANIFEST, compare),
        ("a run's record", record(), compare),
    )
}
REFUSED = {
    # identity: of a run
    "a seed edited in the manifest": (
        edited(MANIFEST, lambda content: content["config"].update(seed=4), keep_checksum=True),
        read,
        "its checksum is wrong",
    ),
    "a seed edited in the manifest and the checksum deleted": (
        edited(MANIFEST, lambda content: content["config"].update(seed=4)),
        read,
        "an id in it is not that of its identity",
    ),
    "a run goes on with the seed that was edited in the manifest": (
        edited(MANIFEST, lambda content: content["config"].update(seed=4)),
        resume_other_seed,
        "an id in it is not that of its identity",
    ),
    "a config field deleted from the manifest": (
        edited(MANIFEST, lambda content: content["config"].pop("learning_rate")), read, "an id in it is not"
    ),
    "a config field added to the manifest": (
        edited(MANIFEST, lambda content: content["config"].update(width=4)), read, "an id in it is not"
    ),
    "the version of jax edited in the manifest": (
        edited(MANIFEST, lambda content: content["identity"]["versions"].update(jax="2")), read, "an id in it is not"
    ),
    "a number in the manifest that is infinite": (rewritten(MANIFEST, "0.1", "1e999"), read, "its checksum is wrong"),
    "a field that is twice in the manifest, the second one another": (
        rewritten(MANIFEST, '"seed": 3', '"seed": 3, "seed": 4'), read, "its checksum is wrong"
    ),
    "the manifest of another run": (
        copy(of_other("manifest.json"), MANIFEST), read, "is of another run: its identity is"
    ),
    "a run goes on with the manifest of another run": (
        copy(of_other("manifest.json"), MANIFEST), resume, "other config: config.seed is 4 there and 3 here"
    ),
    "the checkpoints of another run": (
        copy(of_other("checkpoints"), CHECKPOINTS), resume, "is of another run: its identity is"
    ),
    "the checkpoints of another run and no manifest": (
        both(copy(of_other("checkpoints"), CHECKPOINTS), removed(MANIFEST)),
        resume,
        "has checkpoints, but no manifest.json",
    ),
    "a checkpoint of another run among its own": (mix_checkpoints, read, "is of another run: its identity is"),
    "the whole directory of another run": (copy(of_other(""), of_run("")), resume, "config.seed is 4 there and 3 here"),
    "a module edited between two starts": (
        lambda places: (places.project / "part.py").write_text("CONFIG = {'width': 4}\n"),
        resume,
        r"other source: source.part.py is \w+ there and \w+ here; .*--accept=source",
    ),
    "a copied module edited in the run's directory": (
        lambda places: next(places.a.rglob("part.py")).write_text("CONFIG = {}"),
        read,
        "part.py is missing or was changed",
    ),
    "a copied module that is a link to nothing": (
        lambda places: replaced(lambda places: next(places.a.rglob("part.py")), KINDS["a link to nothing"][0])(places),
        read,
        "part.py is missing or was changed",
    ),
    "metrics with a record of a later step inserted": (
        rewritten(METRICS, "\n", '\n{"step": 3, "loss": 0.1}\n'), read, "line 3 of .*its step 2 does not come after 3"
    ),
    # identity: of a study
    "the study.json of another study": (copy(lambda p: p.t / "study.json", STUDY), report, "which is not this study's"),
    "a study goes on with the study.json of another study": (
        copy(lambda places: places.t / "study.json", STUDY), compare, "config.epochs is 5.0 there and 2.0 here"
    ),
    "a config edited in study.json": (
        edited(STUDY, lambda content: content["workloads"]["digits_mlp"].update(target="accuracy>=0.1")),
        report,
        "study.json is damaged .workloads is missing or is not",
    ),
    "an identity edited in study.json": (
        edited(STUDY, lambda content: content["identities"]["digits_mlp"][0]["data"].update(train="x")),
        report,
        "study.json is damaged .identities is missing or is not",
    ),
    "the record of another optimizer": (copy(record("lion"), record()), report, "holds the run of 'lion'"),
    "the record of another seed": (copy(record(number=1), record()), report, "with .* and seed"),
    "the record of another phase": (copy(record(phase="final"), record()), report, r"\('final'\), not of"),
    "the record of another study's workload": (copy(record(study="t"), record()), compare, "which is not this study's"),
    "the plan of another optimizer": (copy(plan("lion"), plan()), report, "holds the plan of 'lion', not of 'adam'"),
    "a study in the directory of a run": (
        lambda places: None,
        lambda places: directories.compare(places.a, directories.declare()),
        "holds a run, not a study",
    ),
    "a run in the directory of a study": (
        lambda places: None, lambda places: directories.train(places.s, places.source), "holds a study, not a run"
    ),
    # survival
    **NOT_FILES,
    **BEGINS_ANEW,
    "an empty manifest": (lambda places: MANIFEST(places).write_text(""), read, "it is empty"),
    "an empty study.json": (lambda places: STUDY(places).write_text(" \n"), compare, "it is empty"),
    "an empty record": (lambda places: record()(places).write_text(""), compare, "is damaged; delete it"),
    "a full disk for a manifest": (full(MANIFEST), resume, "manifest.json: No space left on device"),
    "a full disk for study.json": (full(STUDY), compare, "study.json: No space left on device"),
    "a full disk for a study's manifest": (full(STUDY_MANIFEST), compare, "manifest.json: No space left on device"),
    "a full disk for a record": (
        both(full(record()), removed(record())), compare, r"tune-.*json: No space left on device"
    ),
    "a workdir that is a file": (
        lambda places: None,
        lambda places: directories.train(places.a / "manifest.json", places.source),
        "cannot write .*(File exists|Not a directory)",
    ),
    "a workdir with a name that is too long": (
        lambda places: None, lambda places: manifest.kind(places.a / ("x" * 300)), "File name too long"
    ),
    "a .lock that is a directory": (
        both(removed(of_run(".lock")), lambda places: (places.a / ".lock").mkdir()), resume, r"\.lock: Is a directory"
    ),
    "a .token that others can read": (
        lambda places: (places.a / ".token").write_text("a" * 64),
        lambda places: tokens.read(places.a / ".token"),
        "is of mode 0644 and not 0600",
    ),
    "a .token that is a link": (
        lambda places: (places.a / ".token").symlink_to(MANIFEST(places)),
        lambda places: tokens.read(places.a / ".token"),
        "cannot read the token",
    ),
    "a .token that is a pipe": (
        lambda places: os.mkfifo(places.a / ".token", 0o600),
        lambda places: tokens.read(places.a / ".token"),
        "is not a regular file",
    ),
    "an experiment's path that is a directory": (
        lambda places: None, lambda places: experiment.find(f"{places.project}/"), "there is no file"
    ),
    "an experiment that is a pipe": (
        replaced(lambda places: places.source.experiment, os.mkfifo),
        lambda places: experiment.find(str(places.source.experiment)),
        "there is no file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", REFUSED)
def test_it_is_refused_in_one_line(places, title):
    spoil, act, words = REFUSED[title]
    spoil(places)
    ignored = ["manifest.json"] if act in (resume, compare) else []  # where each start is recorded
    before = contents(places.a.parent, ignored)
    with pytest.raises(UserError, match=words) as error:
        act(places)
    assert "\n" not in str(error.value)
    assert contents(places.a.parent, ignored).items() >= before.items()


# what is used as what it is


def moved(name):
    """The run under another path."""

    def spoil(places):
        target = places.a.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        places.a.rename(target)
        return places._replace(a=target)

    return spoil


def behind_a_link(places):
    places.a.rename(places.a.with_name("target"))
    places.a.symlink_to("target")


def linked_experiment(places):
    (places.project.parent / "link").unlink(missing_ok=True)
    (places.project.parent / "link").symlink_to(places.project)
    folder = places.project.parent / "link"
    return places._replace(source=sources.Source(folder / "mine.py", {"part.py": folder / "part.py"}))


def from_the_future(places):
    """The clock was wrong when the newest checkpoints were written, and jumped back."""
    for number, path in enumerate(sorted((places.a / "checkpoints").iterdir())):
        os.utime(path, (time.time() + 1e6 - 1e5 * number,) * 2)


def crlf(path):
    def spoil(places):
        path(places).write_bytes(path(places).read_bytes().replace(b"\n", b"\r\n"))

    return spoil


USED = {
    "nothing was done to it": lambda places: None,
    "it was renamed": moved("c"),
    "it was moved": moved("deep/er/c"),
    "its path has odd characters": moved("a b#c?d%20é'\"[x]*{y}&$HOME;~"),
    "its path begins with a hyphen": moved("-c"),
    "its path is read through a link": behind_a_link,
    "its experiment is named through a link": linked_experiment,
    "the clock jumped back": from_the_future,
    "its metrics have the line ends of Windows": crlf(METRICS),
    "its manifest has the line ends of Windows": crlf(MANIFEST),
    "a field is twice in the manifest, the last one right": rewritten(MANIFEST, '"seed": 3', '"seed": 4, "seed": 3'),
    "files of an editor and of a system lie beside": lambda places: [
        (places.a / folder / name).write_text("x")
        for folder in ("", "checkpoints")
        for name in (".DS_Store", "manifest.json~", "000000009-notes.txt")
    ],
    "an unfinished checkpoint lies beside": lambda places: (
        places.a / "checkpoints" / "000000004-0123abcd.orbax-checkpoint-tmp-7"
    ).mkdir(),
    "a token lies beside": lambda places: (places.a / ".token").write_text("x"),
}


@pytest.mark.parametrize("title", USED)
def test_a_run_is_used_as_what_it_is(intact, places, title):
    result = USED[title](places)
    places = result if isinstance(result, Places) else places
    assert plain(directories.read_run(places.a)) == intact[1]
    assert directories.train(places.a, places.source) == 3


# studies

STUDIES = {
    "a number": ({"workloads": {1: {}}}, "1 cannot be a workload's name"),
    "100 letters of four bytes": ({"workloads": {"\U00020000" * 100: {}}}, "cannot be a workload's name"),
    "a name of the parent": ({"workloads": {"..": {"experiment": "digits_mlp"}}}, "cannot be a workload's name"),
    "no fields": ({"workloads": {"digits_mlp": None}}, "workloads are .*they must be names, or"),
    "workloads in one text": ({"workloads": "digits_mlp"}, "workloads are 'digits_mlp'; they must be names"),
    "optimizers in one text": ({"optimizers": "adam"}, "optimizers are 'adam'; they must be a list of names"),
    "an optimizer that is a number": ({"optimizers": [3]}, "they must be a list of names"),
    "a rate that is no number": ({"points": None, "learning_rates": [float("nan")]}, "nor rates above 0"),
    "an infinite rate": ({"points": None, "learning_rates": [float("inf")]}, "nor rates above 0"),
    "a rate in quotes": ({"points": None, "learning_rates": ["0.1"]}, "a number of rates, or a list of rates"),
    "one rate without a list": ({"points": None, "learning_rates": 0.1}, "a number of rates, or a list of rates"),
    "a truth value for a number": ({"seeds": True}, "seeds is True; it must be a whole number"),
    "seeds that reach those of the reruns": ({"seeds": 10_001}, "seeds is 10001; it must be at most 10000"),
    "spaces in a list": ({"spaces": ["adam"]}, "spaces are .*they must be .optimizer:"),
    "a space with three ends": ({"spaces": {"adam": {"b1": (0.1, 0.2, 0.3)}}}, "spaces are .*they must be .optimizer:"),
    "a space with ends in a text": ({"spaces": {"adam": {"b1": "ab"}}}, "spaces are .*they must be .optimizer:"),
    "a space with an end that is no number": ({"spaces": {"adam": {"b1": (float("nan"), 0.9)}}}, "space of adam's b1"),
}


@pytest.mark.parametrize("title", STUDIES)
def test_a_study_declares(title):
    fields, words = STUDIES[title]
    with pytest.raises(UserError, match=words) as error:
        directories.declare(**fields)
    assert "\n" not in str(error.value)


def test_an_optimizer_that_is_declared_twice_counts_once():
    assert directories.declare(optimizers=["adam", "lion", "adam"]).optimizers == ("adam", "lion")
