"""A tiny GPT is trained and writes, as people would have it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

EXPERIMENT = '''"""A GPT that learns the alphabet."""

import numpy as np

from deeplearn.config import base_config
from deeplearn.data import text, tokenizers
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import wire
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.tasks.language_modelling import language_modelling


def get_config():
    return base_config(learning_rate=0.01, batch_size=16, steps=120, log_every=60, mesh="data:1")


def build(config):
    tokenizer = tokenizers.characters("abcdef")
    source = Arrays({"tokens": text.windows(tokenizer.encode("abcdef" * 200).astype(np.uint8), 11)})
    model = GPT(Architecture(vocabulary=6, length=11, width=32, depth=2, heads=2))
    task = language_modelling(model, 11)
    return wire(config, task, Data("alphabet", source, source, source), model, tokenizer=tokenizer)
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory, home):
    from tests.deeplearn.commands.conftest import ROOT

    folder = tmp_path_factory.mktemp("alphabet")
    (folder / "alphabet.py").write_text(EXPERIMENT)
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    more = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(home / "compiled")}
    command = [
        sys.executable,
        "-m",
        "deeplearn",
        "train",
        f"--config={folder / 'alphabet.py'}",
        f"--workdir={folder}/run",
    ]
    subprocess.run(command, env=kept | more, cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "run"


@pytest.mark.parametrize(
    "flags",
    [
        ("--temperature=0",),
        ("--top_k=1",),
        ("--top_p=0.2", "--temperature=0.5"),
        ("--temperature=0", "--checkpoint=last"),
    ],
    ids=str,
)
def test_it_writes_on(run, trained, flags):
    """Beyond the model's length of 11 too."""
    status, out, err = run("generate", f"--workdir={trained}", "--prompt=cd", "--tokens=40", *flags)
    assert (status, err) == (0, "")
    assert out == ("abcdef" * 8)[2:44] + "\n"


AVERAGED = """
import sys
import jax
from deeplearn.commands import generate, launch, runs

restore = runs.restore

def restored(*arguments):
    experiment, program, checkpoint = restore(*arguments)
    average, state = checkpoint.state.params, checkpoint.state
    optimizer = experiment.optimizer._replace(evaluation_params=lambda opt_state, params: average)
    last = state._replace(params=jax.tree.map(lambda x: 0 * x, state.params))
    return experiment._replace(optimizer=optimizer), program, checkpoint._replace(state=last)

runs.restore = restored
sys.exit(launch.run(generate, sys.argv))
"""


def test_it_writes_with_the_parameters_that_are_evaluated(trained, tmp_path):
    """Those of an average, not those of the last step."""
    from tests.deeplearn.commands.conftest import ROOT

    flags = [f"--workdir={trained}", "--prompt=cd", "--tokens=10", "--temperature=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", AVERAGED, *flags]
    out = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (out.stdout, out.returncode) == ("cdefabcdefab\n", 0), out.stderr


def test_a_seed_writes_the_same_again(run, trained):
    command = ("generate", f"--workdir={trained}", "--prompt=a", "--tokens=30", "--temperature=5")
    texts = [run(*command, f"--seed={seed}")[1] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2] and set(texts[0].strip()) <= set("abcdef")


def test_a_reader_that_has_had_enough(start, trained):
    process = start("generate", f"--workdir={trained}", "--prompt=cd", "--tokens=2000", "--temperature=0")
    assert process.stdout.read(5) == "cdefa"
    process.stdout.close()
    assert (process.wait(timeout=300), process.stderr.read()) == (141, "")


def test_a_run_on_more_devices_than_there_are_here(run, trained, tmp_path):
    """The mesh is no part of a run."""
    shutil.copytree(trained, tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    written = json.loads(manifest.read_text())
    del written["checksum"]  # of a file that nobody edited
    manifest.write_text(json.dumps({**written, "config": {**written["config"], "mesh": "data:2"}}))
    command = ("generate", "--workdir=run", "--prompt=cd", "--tokens=5", "--temperature=0")
    status, _, err = run(*command)
    assert status == 2 and "mesh data:2 needs 2 devices, there are 1" in err
    assert run(*command, "--mesh=data:1") == (0, "cdefabc\n", "")
    status, out, _ = run("evaluate", "--workdir=run", "--mesh=data:1")
    assert status == 0 and "accuracy" in out


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--prompt=",), "the prompt is empty; give at least one character"),
        (("--prompt=abx",), "character 2 of the text, 'x', is not in the vocabulary"),
        (("--temperature=-1",), "temperature"),
        (("--temperature=inf",), "--temperature is inf; it must be a finite number"),
        (("--seed=4294967296",), "--seed=4294967296"),
        (("--top_p=1.5",), "top_p"),
        (("--top_p=nan",), "--top_p is nan; it must be a finite number"),
        (("--checkpoint=first",), "unknown checkpoint 'first'"),
    ],
)
def test_mistakes(run, trained, flags, message):
    status, _, err = run("generate", f"--workdir={trained}", *flags)
    assert status == 2 and message in err and err.count("\n") == 1
