import sys
from pathlib import Path

import pytest

from deeplearn import experiment
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.identity.origin import origin

MAIN = """
import numpy
from mine.parts import width
from mine import deep
import json, hypothesis

VALUE = width.WIDTH + deep.DEEP
def get_config(): return VALUE
def build(config):
    from mine import lazy
    return lazy.LAZY
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An experiment that imports a module of a package, one beside it, and one within a function."""
    root = tmp_path / "project"
    files = {
        "mine/parts/__init__.py": "",
        "mine/parts/width.py": "from . import more\nWIDTH = more.MORE",
        "mine/parts/more.py": "MORE = 1",
        "mine/deep.py": "import mine.parts.more\nDEEP = 10",
        "mine/lazy.py": "LAZY = 100",
        "mine/unrelated.py": "1 / 0",
        "mine/main.py": MAIN,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    yield root
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]


def test_what_an_experiment_imports(project):
    source = sources.collect(project / "mine" / "main.py")
    expected = ["mine/deep.py", "mine/lazy.py", "mine/parts/__init__.py", "mine/parts/more.py", "mine/parts/width.py"]
    assert list(source.modules) == expected and source.libraries == ("hypothesis", "numpy")
    assert all(path == project / name for name, path in source.modules.items())


@pytest.mark.parametrize(
    "text, names",
    [
        ("import a.b, c", ["a.b", "c"]),
        ("from a import b", ["a", "a.b"]),
        ("from . import more", ["mine.parts", "mine.parts.more"]),
        ("from .more import MORE", ["mine.parts.more", "mine.parts.more.MORE"]),
        ("from ..deep import DEEP", ["mine.deep", "mine.deep.DEEP"]),
    ],
)
def test_the_names_that_an_import_may_mean(text, names):
    """In a module of the package mine.parts."""
    assert list(sources._imports(Path("width.py"), text.encode(), "mine.parts")) == names


@pytest.mark.parametrize("name", sorted(file.stem for file in experiment.HOME.glob("[a-z]*.py")))
def test_the_experiments_that_come_along(name):
    """What an experiment shares with others is part of its source."""
    source = sources.collect(experiment.find(name))
    text = source.experiment.read_text()
    shared = [word for word in ("_cifar10", "_gpt", "mnist_cnn") if f"from experiments import {word}" in text]
    assert list(source.modules) == [f"experiments/{word}.py" for word in shared]


@pytest.mark.parametrize("changed", ["main.py", "deep.py", "lazy.py", "parts/__init__.py", "parts/more.py"])
def test_a_change_of_any_file_shows(project, changed):
    source = sources.collect(project / "mine" / "main.py")
    before = sources.digests(source)
    assert sources.differing(source, before) == []
    (project / "mine" / changed).write_text("# changed")
    name = "experiment" if changed == "main.py" else f"mine/{changed}"
    assert sources.digests(sources.collect(source.experiment)) != before and sources.differing(source, before) == [name]
    (project / "mine" / changed).unlink()
    assert sources.differing(source, before) == [name]


def test_the_copy_is_executed_where_nothing_else_is_left(project, tmp_path, monkeypatch):
    source = sources.collect(project / "mine" / "main.py")
    digests = sources.digests(source)
    sources.keep(source, tmp_path / "run")
    before = sorted(path.read_bytes() for path in (tmp_path / "run").rglob("*.py"))
    assert len(before) == 6
    project.rename(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", sys.path[1:])
    module = sources.execute(sources.stored(source, digests, tmp_path / "run"))
    assert (module.get_config(), module.build(None)) == (11, 100)


def test_imports_are_the_files_of_the_source(project, tmp_path):
    """Also where another module of that name is imported already, or lies on Python's path."""
    source = sources.collect(project / "mine" / "main.py")
    assert sources.execute(source).get_config() == 11
    digests = sources.digests(source)
    sources.keep(source, tmp_path)
    (project / "mine" / "deep.py").write_text("DEEP = 20")
    assert sources.execute(sources.stored(source, digests, tmp_path)).get_config() == 11
    assert sources.execute(sources.collect(source.experiment)).get_config() == 21


@pytest.mark.parametrize("executed_before", [False, True])
@pytest.mark.parametrize("changed", ["main.py", "parts/more.py", "lazy.py"])
def test_what_is_executed_and_copied_is_what_was_digested(project, tmp_path, changed, executed_before):
    """A file that changes while a run starts, or while a study trains, changes nothing."""
    if executed_before:
        sources.execute(sources.collect(project / "mine" / "main.py"))
    source = sources.collect(project / "mine" / "main.py")
    before = sources.digests(source)
    (project / "mine" / changed).write_text("MORE = LAZY = 1000\ndef get_config(): pass")
    module = sources.execute(source)
    assert (module.get_config(), module.build(None), sources.digests(source)) == (11, 100, before)
    sources.keep(source, tmp_path / "run")
    assert sources.digests(sources.stored(source, before, tmp_path / "run")) == before


def test_a_module_is_executed_again_if_one_that_it_imports_changed(project):
    assert sources.execute(sources.collect(project / "mine" / "main.py")).get_config() == 11
    (project / "mine" / "parts" / "more.py").write_text("MORE = 2")  # width.py, which imports it, is as it was
    assert sources.execute(sources.collect(project / "mine" / "main.py")).get_config() == 12


def test_a_manifest_holds_all_of_a_source(project):
    source = sources.collect(project / "mine" / "main.py")
    assert sources.read(sources.from_json(sources.as_json(source))) == source


def test_a_file_that_a_manifest_leaves_out_is_missed(project):
    source = sources.collect(project / "mine" / "main.py")
    modules = {name: path for name, path in source.modules.items() if name != "mine/deep.py"}
    assert sources.differing(source._replace(modules=modules), sources.digests(source)) == ["mine/deep.py"]


def test_a_copy_that_was_changed_is_refused(project, tmp_path):
    source = sources.collect(project / "mine" / "main.py")
    digests = sources.digests(source)
    sources.keep(source, tmp_path)
    next(tmp_path.glob("source/*/modules/mine/deep.py")).write_text("DEEP = 0")
    with pytest.raises(UserError, match="not what the run was made with: mine/deep.py is missing or was changed"):
        sources.stored(source, digests, tmp_path)
    sources.keep(source, tmp_path)  # as the next start does
    assert sources.execute(sources.stored(source, digests, tmp_path)).get_config() == 11


@pytest.mark.parametrize("text", ["def (", "x = '\0'", "\udcff"])
def test_what_is_not_python(tmp_path, text):
    file = tmp_path / "a.py"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="a.py is not Python"):
        sources.collect(file)


class TestOrigin:
    """Which files are executed for an earlier run."""

    @pytest.fixture
    def run(self, project, tmp_path):
        source = sources.collect(project / "mine" / "main.py")
        sources.keep(source, tmp_path / "run")
        return tmp_path / "run", source, sources.digests(source)

    def test_the_files_where_they_were(self, run):
        assert origin(*run) == run[1]

    @pytest.mark.parametrize("name", ["main.py", "deep.py"])
    def test_changed_files_are_refused_and_the_copy_runs_on_request(self, run, project, name):
        (project / "mine" / name).write_text(MAIN + "# edited" if name == "main.py" else "DEEP = 20")
        with pytest.raises(UserError, match="was made with other source: .*--execute_copy .*--accept=source") as error:
            origin(*run)
        assert "\n" not in str(error.value)
        assert str(origin(*run, execute_copy=True).experiment).startswith(str(run[0]))
        assert origin(*run, accept=["source"]).experiment == project / "mine" / "main.py"

    def test_a_file_in_the_directory_itself_is_not_executed_unasked(self, run):
        """However the manifest names it: the directory may be somebody else's."""
        workdir, source, digests = run
        copy = sources.stored(source, digests, workdir)
        with pytest.raises(UserError, match="if you trust that directory"):
            origin(workdir, copy, digests)

    def test_nor_a_module_there(self, run):
        workdir, source, digests = run
        copy = sources.stored(source, digests, workdir)
        modules = {**source.modules, "mine/deep.py": copy.modules["mine/deep.py"]}
        with pytest.raises(UserError, match="if you trust that directory"):
            origin(workdir, sources.Source(source.experiment, modules, source.libraries), digests)

    def test_nor_one_whose_digests_are_unknown_or_are_to_be_accepted(self, tmp_path):
        file = tmp_path / "experiment.py"
        file.write_text("")
        for digests, accept in ((None, ()), ({"experiment": "0123456789abcdef"}, ["source"])):
            with pytest.raises(UserError, match="--execute_copy executes .*if you trust that directory"):
                origin(tmp_path, sources.Source(file), digests, accept)
        assert origin(tmp_path, sources.Source(file), None, execute_copy=True).experiment == file

    def test_a_built_in_experiment_is_found_in_another_checkout(self, tmp_path):
        source = sources.collect(experiment.find("cifar10_cnn"))
        moved = sources.Source(tmp_path / "cifar10_cnn.py", {name: tmp_path / name for name in source.modules})
        assert origin(tmp_path, moved, sources.digests(source)) == source

    def test_the_bare_name_is_not_enough(self, tmp_path):
        """An experiment of one's own that has the name of a built-in one, and is gone."""
        with pytest.raises(UserError, match="experiment changed or is gone"):
            origin(tmp_path, sources.Source(tmp_path / "digits_mlp.py"), {"experiment": "0123456789abcdef"})

    def test_of_an_old_directory_the_path_decides(self, tmp_path):
        file, workdir = tmp_path / "digits_mlp.py", tmp_path / "run"
        with pytest.raises(UserError, match="which is not there, and has no copy"):
            origin(workdir, sources.Source(file), None)
        file.write_text("")
        assert origin(workdir, sources.Source(file), None).experiment == file
