import csv

import pytest

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
    assert names >= {"curves.png", "learning_rates.png", "table.md", "table.csv", "curves.csv", "manifest.json"}
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
    assert "all 5 runs are there already" in again and "lion" in again and rows(tmp_path / "run" / "table.csv")
    status, _, err = run("compare", *FIELDS, "--config.batch_size=32", "--optimizers=adam", "--reruns=1")
    assert status == 2 and "batch_size" in err and "Traceback" not in err


def test_a_list_of_rates(run, tmp_path):
    status, _, err = run(
        "compare", *FIELDS, "--optimizers=adam", "--learning_rates=0.1,0.01,0.003", "--seeds=1", "--reruns=0"
    )
    assert status == 0, err
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
    for path in ("summary.md", "profiles.png", "digits_mlp/table.md", "sequence_rnn/curves.png"):
        assert (tmp_path / "run" / path).exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--workloads=digits_mlp,sequence_rn",), "unknown experiment 'sequence_rn'; did you mean sequence_rnn?"),
        (("--workloads=digits_mlp", "--config=digits_mlp"), "give either --config=FILE or --workloads=NAME,NAME"),
        ((), "give either --config=FILE or --workloads=NAME,NAME"),
    ],
)
def test_mistakes_in_workloads(run, arguments, said):
    status, _, err = run("compare", "--workdir=run", *arguments)
    assert status == 2 and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--optimizers=adam,momentun",), "unknown optimizer 'momentun'; did you mean momentum"),
        (("--learning_rates=0",), "--learning_rates=0 is neither"),
        (("--learning_rates=0.1,-1",), "--learning_rates=0.1,-1 is neither"),
        (("--seeds=0",), "--seeds=0"),
        (("--points=0",), "--points=0"),
        (("--optimizers=minibatch_sgd(learning_rate=1.0)", "--points=3"), "leaves nothing to search"),
        (("--optimizers=adam(learning_rate=1.0)",), "sets the learning rate that is to vary"),
    ],
)
def test_mistakes(run, arguments, said):
    status, _, err = run("compare", *FIELDS, *arguments)
    assert status == 2 and said in err and "Traceback" not in err
