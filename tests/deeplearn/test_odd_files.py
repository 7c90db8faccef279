"""Files of another form or kind, and faults while a run goes on: the same content, or one line that loses nothing."""

import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest

from deeplearn import experiment
from deeplearn.data import integrity
from deeplearn.data.cache import cached
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.parallel import compile_cache
from deeplearn.training import checkpoints, logs, manifest
from tests.deeplearn import directories
from tests.deeplearn.directories import plain
from tests.deeplearn.spoiling import (
    KINDS,
    MANIFEST,
    METRICS,
    SAME,
    STUDY,
    compare,
    contents,
    plan,
    read,
    record,
    report,
    resume,
    resume_other_seed,
)
from tests.deeplearn.training.faults import injected
from tests.deeplearn.training.states import abstract, make

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
