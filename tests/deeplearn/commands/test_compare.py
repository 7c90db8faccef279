import csv
import inspect
import os
import signal
import threading
import time

import pytest

from deeplearn.comparison import history, protocol, study
from tests.deeplearn import directories

FIELDS = ("--config=digits_mlp", "--workdir=run", "--config.epochs=3", "--config.features=(16,)")


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_compare(run, tmp_path):
    """Every file, and what it says: as many runs as there are, each optimizer once."""
    status, out, err = run(
        "compare", *FIELDS, "--optimizers=adam,momentum(momentum=0.8)", "--learning_rates=2", "--seeds=2", "--reruns=1"
    )
    assert status == 0, err
    assert "| adam |" in out and "| momentum(momentum=0.8) |" in out and "curves.png" in out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"curves.png", "learning_rates.pdf", "budget.png", "table.md", "table.csv", "curves.parquet"}
    assert names >= {"report.html", "study.json", "manifest.json", "tensorboard", "runs"}
    table = rows(tmp_path / "run" / "table.csv")
    assert {row["optimizer"] for row in table} == {"adam", "momentum(momentum=0.8)"}
    curves = rows(tmp_path / "run" / "curves.csv")
    runs = {(row["optimizer"], row["learning_rate"], row["seed"], row["phase"]) for row in curves}
    assert len(runs) == 2 * (2 * 2 + 1) and {int(row["step"]) for row in curves} == {21, 42, 61}
    assert (tmp_path / "run" / "table.md").read_text() in out and "test/accuracy" in out
    assert "seeds, " in out and "p = 1" in out  # one seed proves nothing

    status, again, err = run(
        "compare", *FIELDS, "--optimizers=adam,lion", "--learning_rates=2", "--seeds=2", "--reruns=1"
    )
    assert status == 0, err
    assert "all runs are there already" in again and "lion" in again and rows(tmp_path / "run" / "table.csv")
    with_lion = (tmp_path / "run" / "table.md").read_text()
    (tmp_path / "run" / "table.md").unlink()
    status, out, err = run("report", "--workdir=run")
    assert status == 0 and (tmp_path / "run" / "table.md").read_text() == with_lion and with_lion in out, err
    assert "learning_rates.png" in out and "training" not in err
    lost = sorted((tmp_path / "run" / "runs" / "digits_mlp" / "lion").glob("tune-*"))[0]
    lost.unlink()
    status, out, err = run("report", "--workdir=run", "--count_compile")
    assert status == 0 and "1 of 4 tune runs of lion are not there yet" in out and "| lion |" not in out, err
    status, out, err = run("compare", "--resume", "--workdir=run", "--optimizers=momentum(momentum=0.8)")
    assert status == 0 and "lion           1 runs of 61 steps" in out, err
    assert {row["optimizer"] for row in rows(tmp_path / "run" / "table.csv")} >= {
        "adam",
        "lion",
        "momentum(momentum=0.8)",
    }
    status, _, err = run("compare", *FIELDS, "--config.batch_size=32", "--optimizers=adam", "--reruns=1")
    assert status == 2 and "batch_size" in err and "Traceback" not in err


def test_a_list_of_rates(run, tmp_path):
    status, out, err = run(
        "compare", *FIELDS, "--optimizers=adam", "--learning_rates=0.1,0.01,0.003", "--seeds=1", "--reruns=0"
    )
    assert status == 0, err
    lanes = -(-3 // min(os.cpu_count(), 8)) * min(os.cpu_count(), 8)  # three runs, a device a core
    assert f"; {lanes} in one program" in out
    assert {float(row["learning_rate"]) for row in rows(tmp_path / "run" / "curves.csv")} == {0.1, 0.01, 0.003}


def test_points(run, tmp_path):
    """Quasi-random over all that an optimizer leaves open, another space for each."""
    arguments = ("--optimizers=adam(b2=0.9),minibatch_sgd", "--points=3", "--seeds=1", "--reruns=0")
    status, out, err = run("compare", *FIELDS, *arguments)
    assert status == 0, err
    assert "| point |" in out and "3 points x 1 seeds" in out and "learning_rate=" in out
    curves = rows(tmp_path / "run" / "curves.csv")
    adam = {(row["learning_rate"], row["b1"]) for row in curves if row["optimizer"] == "adam(b2=0.9)"}
    assert len(adam) == 3 and {row["b1"] for row in curves if row["optimizer"] == "minibatch_sgd"} == {""}


@pytest.mark.slow
def test_workloads(run, tmp_path):
    """A directory each, and what they say together."""
    flags = ("--optimizers=lbfgs,rprop", "--learning_rates=1", "--seeds=1", "--reruns=1")  # few steps of the whole set
    status, out, err = run("compare", "--workloads=sequence_rnn,digits_mlp", "--workdir=run", *flags)
    assert status == 0, err
    assert "2 optimizers on 2 workloads" in out and "| sequence_rnn, epochs |" in out
    for path in ("report.html", "summary.md", "profiles.pdf", "digits_mlp/table.md", "sequence_rnn/curves.png"):
        assert (tmp_path / "run" / path).exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--workloads=digits_mlp,sequence_rn",), "unknown experiment 'sequence_rn'; did you mean sequence_rnn"),
        (("--workloads=digits_mlp", "--config=digits_mlp"), "give one of --config=FILE, --study=FILE"),
        (("--study=two_cores", "--config=digits_mlp"), "give one of --config=FILE, --study=FILE"),
        ((), "give one of --config=FILE, --study=FILE, --workloads=NAME,NAME and --resume"),
        (("--study=two_core",), "unknown study 'two_core'; did you mean two_cores?"),
        (
            ("--study=two_cores", "--workloads=digits"),
            "unknown workload of the study 'digits'; did you mean digits_mlp?",
        ),
        (("--resume",), "run holds no study; give the --workdir of a `deeplearn compare`"),
        (
            ("--config=digits_mlp", "--config.target=accuracy<=0.9"),
            "is in the wrong direction: more accuracy is better",
        ),
    ],
)
def test_mistakes_in_workloads(run, arguments, said):
    status, _, err = run("compare", "--workdir=run", *arguments)
    assert status == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--optimizers=adam,momentun",), "unknown optimizer 'momentun'; did you mean momentum"),
        (("--learning_rates=0",), "learning_rates, 0, are neither a number of rates nor rates above 0"),
        (("--learning_rates=0.1,-1",), "are neither a number of rates nor rates above 0"),
        (("--learning_rates=0.1,x",), "--learning_rates=0.1,x is neither"),
        (("--seeds=0",), "seeds is 0; it must be at least 1"),
        (("--config.mesh=data:2",), "digits_mlp: config.mesh is 'data:2', and a comparison ignores it"),
        (("--config.patience=3",), "digits_mlp: config.patience is 3, and a comparison ignores it; all runs have"),
        (("--config.dropout=1.5",), "config.dropout is 1.5; it must be in [0, 1)"),
        (("--points=3", "--learning_rates=8"), "give one of --points and --learning_rates"),
        (("--points=0",), "points is 0"),
        (("--optimizers=minibatch_sgd(learning_rate=1.0)", "--points=3"), "leaves nothing to search"),
        (("--optimizers=adam(learning_rate=1.0)",), "sets the learning rate that is to vary"),
    ],
)
def test_mistakes(run, arguments, said):
    status, _, err = run("compare", *FIELDS, *arguments)
    assert status == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "flags, expected",
    [
        ((), {"points": None, "learning_rates": 8, "seeds": 3, "reruns": 5, "together": None, "lanes": None}),
        (("--reruns=0", "--notogether", "--seeds=2"), {"reruns": 0, "together": False, "seeds": 2}),
        (("--points=6", "--lanes=3", "--together"), {"points": 6, "lanes": 3, "together": True}),
        (("--learning_rates=4",), {"learning_rates": 4, "points": None}),
        (("--learning_rates=0.1,1",), {"learning_rates": (0.1, 1.0)}),
        (("--optimizers=adam,lion(b1=0.8,b2=0.9),adam",), {"optimizers": ("adam", "lion(b1=0.8,b2=0.9)")}),
    ],
)
def test_the_study_that_flags_declare(command, flags, expected):
    made = command("compare", *FIELDS, *flags).chosen()
    assert {name: getattr(made, name) for name in expected} == expected
    assert made.workloads[0].config.epochs == 3 and made.workloads[0].config.features == (16,)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ((), {"optimizers": ("adam", "lion"), "points": 2, "seeds": 2, "reruns": 2}),
        (("--optimizers=muon,adam",), {"optimizers": ("adam", "lion", "muon"), "points": 2}),
        (("--reruns=0", "--learning_rates=4"), {"reruns": 0, "learning_rates": 4, "points": None}),
    ],
)
def test_the_study_that_a_workdir_holds_and_flags_change(command, tmp_path, flags, expected):
    directories.compare(tmp_path, directories.declare(optimizers=["adam", "lion"]))
    made = command("compare", "--resume", f"--workdir={tmp_path}", *flags).chosen()
    assert {name: getattr(made, name) for name in expected} == expected
    assert made.workloads[0].config.epochs == 2


class Called(Exception):
    """In place of training."""


@pytest.mark.parametrize("accept, replan", [((), False), (("--accept=data,implementations",), True)])
def test_what_the_runs_of_an_optimizer_are_told(command, tmp_path, monkeypatch, accept, replan):
    flags = ("--optimizers=lion,adam", "--points=2", "--seeds=4", "--reruns=1", "--lanes=3", "--notogether")
    compare = command("compare", *FIELDS, "--config.seed=7", *flags, *accept)
    declared = compare.chosen()
    (workload,) = declared.workloads
    stored = history.extended(tmp_path, history.History(), declared, {"digits_mlp": compare.identify(workload)})
    (own,) = stored.identities["digits_mlp"]
    older = {**own, "id": "older"}
    stored = stored._replace(identities={"digits_mlp": [older, own]})
    calls = []

    def called(*positional, **named):
        calls.append(inspect.signature(run).bind(*positional, **named).arguments)
        raise Called

    run = protocol.run
    monkeypatch.setattr(protocol, "run", called)
    with pytest.raises(Called):
        compare.compare(declared, workload, stored, tmp_path, threading.Event())
    (told,) = calls
    assert (told["directory"], told["name"]) == (tmp_path / "runs" / "digits_mlp", "lion")
    assert told["experiment"].config.optimizer == "lion" and told["experiment"].config.epochs == 3
    assert told["points"] == study.search(declared, "lion", 7) and told["seeds"] == range(7, 11)
    assert (told["reruns"], told["together"], told["lanes"], told["replan"]) == (1, False, 3, replan)
    assert told["identity"] == own["id"] and told["accepted"] == {"older", own["id"]}


STUDY = """
def get_study():
    return {
        "workloads": {"short": {"experiment": "digits_mlp", "epochs": 1.0, "features": (8,)}, "sequence_rnn": {}},
        "optimizers": ["adam", "momentum"],
        "points": 2,
        "spaces": {"adam": {"learning_rate": (0.001, 0.01)}},
        "seeds": 1,
        "reruns": 0,
    }
"""


def test_a_study_is_a_file_and_a_directory(run, tmp_path):
    """Run in part, then edited: refused with nothing lost; put back: what is finished is not run again."""
    file = tmp_path / "mine.py"
    file.write_text(STUDY)
    status, out, err = run("compare", "--study=mine.py", "--workloads=short", "--optimizers=adam", "--workdir=run")
    assert status == 0 and "short: 1 optimizers x 2 points x 1 seeds" in out, err
    records = {path: path.read_bytes() for path in (tmp_path / "run" / "runs").rglob("*-*-*.json")}
    assert len(records) == 2
    file.write_text(STUDY.replace("(0.001, 0.01)", "(0.001, 0.1)"))
    status, _, err = run("compare", "--study=mine.py", "--workloads=short", "--workdir=run")
    assert status == 2 and "spaces.adam.learning_rate is [0.001, 0.01] there and [0.001, 0.1] here" in err
    file.write_text(STUDY.replace("1.0", "2.0"))
    status, _, err = run("compare", "--study=mine.py", "--workloads=short", "--workdir=run")
    assert status == 2 and "config.epochs is 1.0 there and 2.0 here" in err and "Traceback" not in err
    file.write_text(STUDY)
    status, out, err = run("compare", "--study=mine.py", "--workloads=short", "--workdir=run")
    assert status == 0 and "adam           all runs are there already" in out and "| momentum |" in out, err
    assert all(path.read_bytes() == content for path, content in records.items())


def test_a_corrupt_record_is_named(run, tmp_path):
    flags = ("--optimizers=adam", "--learning_rates=2", "--seeds=1", "--reruns=0")
    assert run("compare", *FIELDS, *flags)[0] == 0
    first, second = sorted((tmp_path / "run" / "runs").rglob("*-*-*.json"))
    whole = second.read_bytes()
    first.write_text(first.read_text()[:-20])
    for command in (("compare", *FIELDS, *flags), ("report", "--workdir=run")):
        status, _, err = run(*command)
        assert status == 2 and f"{first.name} is damaged; delete it" in err and err.count("\n") == 1
    first.unlink()
    status, out, err = run("compare", *FIELDS, *flags)
    assert status == 0 and "1 runs of" in out and second.read_bytes() == whole, err


@pytest.mark.parametrize("number, status, said", [(signal.SIGKILL, -9, ""), (signal.SIGINT, 130, "stopped; the runs")])
def test_a_stopped_comparison_goes_on(start, run, tmp_path, number, status, said):
    """Stopped when the first optimizer's runs are there: the next command trains only the others."""
    flags = (*FIELDS, "--optimizers=adam,lion,muon,adan,yogi", "--learning_rates=2", "--seeds=1", "--reruns=0")
    process = start("compare", *flags)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "run").rglob("tune-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status and said in out and "Traceback" not in err
    status, out, err = run("compare", *flags)
    assert status == 0 and "adam           all runs are there already" in out and "| muon |" in out, err


def test_no_report_without_runs(run, tmp_path):
    status, _, err = run("report", "--workdir=run")
    assert status == 2 and "holds no study" in err
    assert run("compare", *FIELDS, "--optimizers=adam", "--learning_rates=1", "--seeds=1", "--reruns=0")[0] == 0
    for path in (tmp_path / "run" / "runs").rglob("*.json"):
        path.unlink()
    status, out, err = run("report", "--workdir=run")
    assert status == 2 and "1 of 1 tune runs of adam are not there yet" in out
    assert "has no optimizer with all its runs; run `deeplearn compare --resume` first" in err
