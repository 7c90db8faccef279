"""Invented faults and odd inputs: a directory is used as what it is, or refused in one line that loses nothing."""

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from deeplearn import experiment
from deeplearn.data import integrity
from deeplearn.data.cache import cached
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.parallel import compile_cache, tokens
from deeplearn.training import checkpoints, logs, manifest
from tests.deeplearn import directories
from tests.deeplearn.directories import plain
from tests.deeplearn.training.faults import injected
from tests.deeplearn.training.states import abstract, make

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


@pytest.fixture(scope="session")
def intact(tmp_path_factory):
    """The directories before they are spoilt, and what they hold."""
    root = tmp_path_factory.mktemp("intact")
    source = directories.project(root / "project")
    directories.train(root / "a", source)
    directories.train(root / "b", source, seed=SAME + 1)
    directories.compare(root / "s", directories.declare())
    directories.compare(root / "t", directories.declare(workloads={"digits_mlp": {"epochs": 5.0}}))
    shutil.rmtree(root / "project")
    return root, plain(directories.read_run(root / "a")), plain(directories.read_study(root / "s"))


@pytest.fixture
def places(intact):
    """The paths are the same in each test, because a run's directory holds that of its experiment."""
    root = intact[0]
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(root / "project", ignore_errors=True)
    for name in "as":
        shutil.copytree(root / name, work / name)
    source = directories.project(root / "project")
    return Places(work / "a", root / "b", work / "s", root / "t", root / "project", source)


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


# text files

ENCODINGS = {
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "a NUL byte at the end": lambda data: data + b"\0",
    "NUL bytes alone": lambda data: bytes(len(data)),
    "100,000 nested lists": lambda data: b"[" * 100_000,
    "an integer of 5,000 digits": lambda data: b'{"step": ' + b"9" * 5000 + b"}\n",
    "the first half": lambda data: data[: len(data) // 2],
    "another object": lambda data: b"{}\n",
    "a list": lambda data: b"[1]\n",
}
TEXTS = {
    "a run's manifest": (MANIFEST, read),
    "metrics.jsonl": (METRICS, read),
    "study.json": (STUDY, report),
    "a record": (record(), report),
    "a plan": (plan(), report),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_file_of_another_form(intact, places, text, encoding):
    path, act = TEXTS[text]
    file = path(places)
    file.write_bytes(ENCODINGS[encoding](file.read_bytes()))
    if (text, encoding) == ("metrics.jsonl", "the first half"):  # as after a kill
        assert directories.read_run(places.a)[0][-1] == logs.read_metrics(places.a) != []
        return
    with pytest.raises(UserError, match=f"{file.name} (is damaged|is not a|has)|of {file}") as error:
        act(places)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_checksums_of_another_form(tmp_path, encoding):
    (tmp_path / "dataset_info.json").write_text("{}")
    integrity.record(tmp_path)
    file = tmp_path / integrity.CHECKSUMS
    file.write_bytes(ENCODINGS[encoding](file.read_bytes()))
    with pytest.raises(UserError, match="checksums.json is damaged .it does not have the SHA-256"):
        integrity.verify("tiny", tmp_path, records=True)


EXPERIMENT = "import part\ndef get_config(): return part.CONFIG\ndef build(config): return 1\n"
EXPERIMENTS = {
    "a byte order mark": (b"\xef\xbb\xbf" + EXPERIMENT.encode(), None),
    "line ends of Windows": (EXPERIMENT.replace("\n", "\r\n").encode(), None),
    "an encoding of its own": ("# coding: latin-1\n# \xe9\n".encode("latin-1") + EXPERIMENT.encode(), None),
    "UTF-16": (EXPERIMENT.encode("utf-16"), "is not Python"),
    "a NUL byte": (EXPERIMENT.encode() + b"\0", "is not Python"),
    "a sign before a sign 100,000 times": (b"x = " + b"-" * 100_000 + b"1", "is not Python"),
    "an integer of 5,000 digits": (b"x = " + b"9" * 5000, "is not Python"),
    "an unknown encoding": (b"# coding: nonsense\n", "is not Python"),
    "nothing": (b"", "has no function get_config"),
}


@pytest.mark.parametrize("title", EXPERIMENTS)
def test_an_experiment_with(places, monkeypatch, title):
    content, words = EXPERIMENTS[title]
    places.source.experiment.write_bytes(content)
    monkeypatch.syspath_prepend(places.project)
    sys.modules.pop("part", None)
    if words:
        for act in (sources.collect, lambda path: experiment.load(str(path))):
            if act is sources.collect and not content:
                continue
            with pytest.raises(UserError, match=words) as error:
                act(places.source.experiment)
            assert "\n" not in str(error.value)
        return
    source = sources.collect(places.source.experiment)
    assert source[:3] == places.source[:3] and experiment.load(source).get_config() == {"width": 3}


NAMES = {
    "a module of this library": "deeplearn/config.py",
    "a loaded module of Python": "json/decoder.py",
    "a module that its folder hides": "part/part.py",
    "a built-in experiment": "experiments/digits_mlp.py",
}


@pytest.mark.parametrize("title", NAMES)
def test_an_experiment_with_the_name_of(tmp_path, title):
    """It imports the real module of its name, and is executed itself."""
    file = tmp_path / NAMES[title]
    file.parent.mkdir()
    imports = "from deeplearn.config import base_config\nfrom json.decoder import JSONDecoder\n"
    file.write_text(f"{imports}def get_config(): return base_config(width=9)\ndef build(config): return JSONDecoder\n")
    before = sys.modules.copy()
    module = experiment.load(sources.collect(file))
    assert module.get_config().width == 9 and module.build(None) is json.JSONDecoder
    assert {name: sys.modules[name] for name in before} == before


IMPORTS = {
    "itself": {"mine": "import mine\n"},
    "a module that imports it": {"mine": "import other\n", "other": "def late():\n    import mine\n"},
    "two modules that import each other": {
        "mine": "import other\n",
        "other": "import third\n",
        "third": "import other\n",
    },
}


@pytest.mark.parametrize("title", IMPORTS)
def test_an_experiment_imports(tmp_path, monkeypatch, title):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in IMPORTS[title].items():
        (tmp_path / f"{name}.py").write_text(text + "def get_config(): return 1\ndef build(config): return 1\n")
        sys.modules.pop(name, None)
    source = sources.collect(tmp_path / "mine.py")
    assert len(sources.digests(source)) >= len(IMPORTS[title])
    assert experiment.load(source).get_config() == 1
    for name in IMPORTS[title]:
        sys.modules.pop(name, None)


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
    "seeds that reach those of the reruns": ({"seeds": 10_001}, "seeds are 10001; at most 10000"),
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


# while it runs


def test_a_damaged_copy_of_the_source_is_replaced_at_the_next_start(intact, places):
    part = next(places.a.rglob("part.py"))
    part.write_text("CONFIG = {}\n")
    assert resume(places) == 3
    assert plain(directories.read_run(places.a)[0][3:]) == intact[1][0][3:]


def test_the_current_directory_changes_while_a_run_saves(places, monkeypatch, tmp_path):
    monkeypatch.chdir(places.a)
    with checkpoints.open("new", keep=3) as manager:
        monkeypatch.chdir(tmp_path)
        assert checkpoints.save(manager, 1, make(1), {})
    assert list(tmp_path.iterdir()) == [] and len(list((places.a / "new").iterdir())) == 1


def test_a_directory_that_is_deleted_while_its_run_goes_on(places):
    """What the run saves then is its own, and never another run's."""
    identity = manifest.last_id(manifest.read(places.a))
    with checkpoints.open(places.a / "checkpoints", mode="max", identity=identity) as manager:
        assert checkpoints.restore_latest(manager, abstract(make(0))).step == 3
        shutil.rmtree(places.a)
        assert checkpoints.save(manager, 4, directories.state(SAME, 4), {"epoch": 2.0}, 0.1)
    with pytest.raises(UserError, match="has checkpoints, but no manifest.json"):
        resume_other_seed(places)
    assert resume(places) == 4


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("name, act", [("manifest.json", resume), ("study.json", compare), ("study.json", report)])
def test_a_file_that_cannot_be_looked_at(places, monkeypatch, code, name, act):
    """It may be intact, and nothing begins in its place."""
    before = contents(places.a.parent)
    with injected(monkeypatch, places.a.parent, lambda number, path: path.endswith(name), code):
        with pytest.raises(UserError, match=f"cannot read .*{name}: {os.strerror(code)}; nothing was changed"):
            act(places)
    assert contents(places.a.parent) == before


@pytest.mark.parametrize("content, words", [("", "another process is at work"), ("77", "process 77 is .*`kill 77`")])
def test_a_lock_that_is_held(places, content, words):
    with manifest.lock(places.a):
        (places.a / ".lock").write_text(content)
        with pytest.raises(UserError, match=words):
            resume(places)


# caches and checkpoints


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_file_that_is(tmp_path, caplog, kind):
    """It is neither read nor replaced."""
    path = tmp_path / "x.arrays"
    KINDS[kind][0](path)
    before = os.lstat(path)
    result = cached("x.arrays", [tmp_path], lambda: {"x": np.arange(3)})
    assert result["x"].tolist() == [0, 1, 2] and os.lstat(path).st_ino == before.st_ino
    assert f"cannot read {path} ({KINDS[kind][1]})" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_that_are(tmp_path, kind):
    KINDS[kind][0](tmp_path / integrity.CHECKSUMS)
    with pytest.raises(UserError, match=f"tiny: cannot read .*checksums.json .{KINDS[kind][1]}"):
        integrity.verify("tiny", tmp_path, records=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_program_that_is(tmp_path, kind):
    """It is compiled again."""
    from jax._src.lru_cache import LRUCache

    cache = compile_cache.CheckedCache(LRUCache(str(tmp_path), max_size=-1))
    cache.put("key", b"program")
    (path,) = tmp_path.iterdir()
    path.unlink()
    KINDS[kind][0](path)
    assert cache.get("key") is None
    cache.put("key", b"program")
    assert cache.get("key") == b"program"


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_of_a_checkpoint_that_is(places, kind):
    path = next((places.a / "checkpoints").glob("000000003-*/record/record.json"))
    path.unlink()
    KINDS[kind][0](path)
    for act in (read, resume):
        with pytest.raises(UserError, match="cannot read the checkpoint .*; nothing was changed") as error:
            act(places)
        assert "\n" not in str(error.value)
