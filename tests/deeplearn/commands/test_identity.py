"""A result is never another run's: what a directory holds is used as what it is, or refused in one line."""

import json
import shutil

import pytest

from deeplearn import identity
from deeplearn.training import manifest

DIGITS = """
import ml_collections  # an installed package beside those that every identity has: its version belongs to it too
from deeplearn.config import base_config
from deeplearn.data import augment, datasets
from deeplearn.experiment import wire
from deeplearn.models.mlp import MLP
from deeplearn.tasks.classification import classification
from deeplearn.tasks.transformations import preprocess
from mine import scaling


def get_config():
    return base_config(epochs=1.0)


def build(config):
    data = datasets.load("digits")
    task = preprocess(classification(MLP((16,), 10), (8, 8, 1), 10), augment.scale(*scaling.RANGE))
    return wire(config, task, data, MLP((16,), 10))
"""
COMPARE = ("--optimizers=adam", "--learning_rates=2", "--seeds=1", "--reruns=1")


def refused(result, *said):
    """A command's result that is one line, with these words, and exit status 2."""
    status, out, err = result
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in err, err
    assert all(word in errors[0] for word in said), errors[0]
    return errors[0]


def contents(folder):
    """Every file and what is in it."""
    ignored = (".lock", ".token")
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in ignored}


@pytest.fixture
def project(tmp_path):
    """One's own experiment, with the name of a built-in one, and a module of its own; commands start in tmp_path."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "digits_mlp.py").write_text(DIGITS)
    (folder / "scaling.py").write_text("RANGE = (5.0, -5.0)\n")
    return folder


def test_a_run_is_evaluated_with_what_it_was_made_with(run, project, tmp_path):
    """From another place, after the files changed, moved or vanished; the copy is executed on request."""
    status, _, err = run("train", "--config=mine/digits_mlp.py", "--workdir=r")
    assert status == 0, err
    status, expected, err = run("evaluate", "--workdir=r")
    assert status == 0, err
    before = contents(tmp_path / "r")
    evaluate = ("evaluate", f"--workdir={tmp_path / 'r'}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(*evaluate, cwd=elsewhere)[:2] == (0, expected)

    (project / "scaling.py").write_text("RANGE = (0.0, 1.0)\n")
    said = refused(run(*evaluate), "mine/scaling.py changed or is gone", "--execute_copy", "--accept=source")
    assert str(tmp_path / "r" / "source") in said
    assert run(*evaluate, "--execute_copy")[:2] == (0, expected)
    status, other, err = run(*evaluate, "--accept=source")
    assert status == 0 and other != expected and "accepted: source.mine/scaling.py is" in err

    shutil.rmtree(project)
    refused(run(*evaluate, cwd=elsewhere), "experiment, mine/scaling.py changed or is gone")
    assert run(*evaluate, "--execute_copy", cwd=elsewhere)[:2] == (0, expected)
    (tmp_path / "r").rename(tmp_path / "moved")
    assert run("evaluate", f"--workdir={tmp_path / 'moved'}", "--execute_copy", cwd=elsewhere)[:2] == (0, expected)
    assert {path.name: content for path, content in contents(tmp_path / "moved").items()} == {
        path.name: content for path, content in before.items()
    }


def test_a_mistyped_path_trains_nothing(run, tmp_path):
    refused(run("train", "--config=no/digits_mlp.py", "--workdir=r"), "no file no/digits_mlp.py", "digits_mlp is named")
    refused(run("compare", "--workloads=no/digits_mlp.py", "--workdir=r", *COMPARE), "no file no/digits_mlp.py")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", [("train", "--config=digits_mlp"), ("compare", "--workloads=digits_mlp")])
def test_a_copy_is_executed_in_place_of_no_other_file(run, command):
    refused(run(*command, "--workdir=r", "--execute_copy"), "--execute_copy executes the cop")


def test_a_run_goes_on_as_itself_only(run, project, tmp_path):
    train = ("train", "--config=mine/digits_mlp.py", "--workdir=r")
    assert run(*train)[0] == 0
    before = contents(tmp_path / "r")
    refused(run(*train, "--config.seed=1"), "config.seed is 0 there and 1 here", "--accept=config")
    (project / "scaling.py").write_text("RANGE = (0.0, 1.0)\n")
    refused(run(*train), "source.mine/scaling.py is", "--accept=source")
    assert contents(tmp_path / "r") == before
    assert run(*train, "--accept=source", "--config.epochs=2", "--accept=source,config")[0] == 0
    written = json.loads((tmp_path / "r" / "manifest.json").read_text())
    accepted = written["resumed"][0]["accepted"]
    assert accepted[0] == "config.epochs is 1.0 there and 2.0 here" and "source.mine/scaling.py is" in accepted[1]
    assert len(list((tmp_path / "r" / "source").iterdir())) == 2
    assert run("evaluate", "--workdir=r")[0] == 0
    assert run("train", "--workdir=r")[0] == 0  # without --config, what it is now


def test_what_differs_is_named_by_every_command(run, tmp_path):
    """As if the run had been made elsewhere, with other data, another version and on another device."""
    assert run("train", "--config=digits_mlp", "--config.epochs=1", "--workdir=r")[0] == 0
    file = tmp_path / "r" / "manifest.json"
    written = json.loads(file.read_text())
    written.pop("checksum", None)
    changes = (("data", "train"), ("versions", "jax"), ("implementations", "device"))
    changed = {section: {**written["identity"][section], name: "another"} for section, name in changes}
    written["resumed"] = [{"changed": changed}]
    written["resumed"][0]["id"] = identity.digest(manifest.current(written))
    file.write_text(json.dumps(written))
    words = ("data.train is another there and ", "versions.jax is another there and ")
    words += ("implementations.device is another there and ", "--accept=data,versions,implementations")
    refused(run("evaluate", "--workdir=r"), *words)
    said = refused(run("train", "--workdir=r", "--accept=data"), *words[1:])
    assert "data.train" not in said
    status, _, err = run("evaluate", "--workdir=r", "--accept=data,versions,implementations")
    assert status == 0 and err.count("accepted: ") == 3


def test_a_directory_knows_what_it_holds(run, tmp_path):
    assert run("train", "--config=digits_mlp", "--config.epochs=1", "--workdir=r")[0] == 0
    before = contents(tmp_path / "r")
    for flags in (("--config=digits_mlp",), ("--resume",), ("--workloads=digits_mlp",)):
        refused(run("compare", *flags, "--workdir=r", *COMPARE), "r holds a run, not a study")
    refused(run("report", "--workdir=r"), "r holds a run, not a study")
    wider = ("--config.epochs=1", "--config.features=(7,)", "--accept=config")  # accepted, and fits no checkpoint
    refused(run("train", "--config=digits_mlp", "--workdir=r", *wider), "is of another model: ")
    assert contents(tmp_path / "r") == before
    assert run("compare", "--config=digits_mlp", "--config.epochs=1", "--workdir=s", *COMPARE)[0] == 0
    before = contents(tmp_path / "s")
    refused(run("train", "--config=digits_mlp", "--workdir=s"), "s holds a study, not a run", "another --workdir")
    for command in ("evaluate", "generate", "train"):
        refused(run(command, "--workdir=s"), "s holds a study, not a run", "`deeplearn compare`")
    assert contents(tmp_path / "s") == before


def test_a_study_reuses_its_own_runs_only(run, project, tmp_path):
    """Workload A, then B, then a changed A: refused, as it is without B."""

    def compare(*flags):
        return run("compare", "--workdir=s", *COMPARE, *flags)

    assert compare("--config=mine/digits_mlp.py")[0] == 0
    assert compare("--config=sequence_rnn", "--config.epochs=1")[0] == 0
    refused(compare("--config=mine/digits_mlp.py", "--config.epochs=8"), "config.epochs is 1.0 there and 8.0 here")
    refused(compare("--config=digits_mlp", "--config.epochs=1"), "digits_mlp in s was made with other")
    (project / "scaling.py").write_text("RANGE = (0.0, 1.0)\n")
    refused(compare("--config=mine/digits_mlp.py"), "source.mine/scaling.py is")
    (project / "scaling.py").write_text("RANGE = (5.0, -5.0)\n")
    status, out, err = compare("--config=mine/digits_mlp.py")
    assert status == 0 and "all runs are there already" in out, err
    shutil.rmtree(project)
    refused(compare("--resume"), "--execute_copy")
    refused(run("compare", "--resume", "--workdir=~/s", HOME=str(tmp_path)), "--execute_copy")  # the study is found
    status, out, err = compare("--resume", "--execute_copy")
    assert status == 0 and "all runs are there already" in out, err
    assert run("report", "--workdir=s")[0] == 0  # which executes no experiment
