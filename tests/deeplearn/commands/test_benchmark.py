"""The command: a small measurement from end to end, and a user's mistakes."""

import json
import subprocess
import sys

import pytest

OTHERS = ("startup", "sweep", "meshes", "gpt2")  # what is measured only where it is asked for


def benchmark(*arguments):
    command = [sys.executable, "-m", "deeplearn", "benchmark", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmark") / "figures.json"
    done = benchmark("--cases=sequence_rnn", "--rounds=1", "--seconds=0.05", f"--output={output}")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


def test_the_table_is_printed(measured):
    printed, _ = measured
    assert "| a tanh RNN of 32 over 10 steps, batch 32 |" in printed
    assert "3.0 x plain Flax" not in printed  # nothing pools here


def test_the_figures_are_written(measured):
    _, content = measured
    assert set(content) == {"machine", "rounds", "seconds", "cases", "geometric_means", "goals", *OTHERS}
    assert content["rounds"] == 1 and content["seconds"] == 0.05 and not any(content[name] for name in OTHERS)
    contenders = content["cases"]["sequence_rnn"]["contenders"]
    assert list(contenders) == ["ours", "flax", "torch", "compiled"]
    for name in ("ours", "flax"):
        assert contenders[name]["examples_per_second"] > 0
    for name in ("torch", "compiled"):
        assert contenders[name].get("examples_per_second", 0) > 0 or contenders[name]["not_available"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cases=lstn"], "error: unknown case 'lstn'; did you mean lstm?"),
        (["--cases=lstm", "--output=/nowhere/x.json"], "error: cannot write /nowhere/x.json"),
        (["--rounds=0"], "error: flag --rounds=0"),
        (["--cases=gpt2"], "error: gpt2 is measured on a GPU or a TPU, and JAX finds only a cpu"),
    ],
)
def test_mistakes_give_one_line(arguments, message):
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
