"""Commands run as people run them: in a process of their own."""

import contextlib
import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from deeplearn.commands import launch

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """One cache of compiled programs and one data directory for every command of the session."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def environment(home):
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "TFDS_DATA_DIR")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TFDS_DATA_DIR": str(home / "data"),
    }


@pytest.fixture
def start(environment, tmp_path):
    """`start(*arguments)`: the running process; its output is read with `communicate`.

    limit: the greatest size of a file that it can write, in bytes; cwd: where it starts, tmp_path by default; other
    keywords go to the environment.
    """

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background, and what it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*arguments, limit=None, cwd=tmp_path, **more):
        process = subprocess.Popen(
            [sys.executable, "-m", "deeplearn", *map(str, arguments)],
            env={**environment, **more},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if limit:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        return process

    return start


@pytest.fixture
def run(start):
    """`run(*arguments)`: (status, standard output, standard error) of the finished command."""

    def run(*arguments, **more):
        process = start(*arguments, **more)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


@pytest.fixture
def command(monkeypatch):
    """`command("compare", "--workdir=run")`: the module of a command, in this process, with these flags."""
    with contextlib.ExitStack() as stack:

        def command(name, *arguments):
            for flag in flags.FLAGS:  # several commands have a flag of the same name
                flags.FLAGS[flag].allow_override = True
            module = importlib.import_module(f"deeplearn.commands.{name}")
            stack.enter_context(flagsaver.flagsaver())
            for flag in flags.FLAGS:  # and some need flags that this one has not
                flags.FLAGS[flag].validators = []
            monkeypatch.setattr(sys, "argv", [name, *arguments])  # where ml_collections looks for config.FIELD
            launch.parse(sys.argv)
            return module

        yield command


EXPERIMENT = '''"""A network with dropout, batch norm and augmentation, small enough to be killed often."""

import flax.linen as nn

from deeplearn.config import base_config
from deeplearn.data import augment, datasets
from deeplearn.experiment import wire
from deeplearn.tasks import transformations
from deeplearn.tasks.classification import classification


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))


def get_config():
    return base_config(epochs=20.0, width=64, eval_every=50, checkpoint_every=20, log_every=10, ema=0.9)


def build(config):
    data = datasets.load("digits")
    model = Net(config.width)
    task = transformations.preprocess(classification(model, (8, 8, 1), 10), augment.scale(-1, 1))
    task = transformations.augment(task, augment.random_crop(1))
    return wire(config, task, data, model)
'''


@pytest.fixture
def fragile(tmp_path):
    """The path of an experiment with every kind of randomness."""
    path = tmp_path / "fragile.py"
    path.write_text(EXPERIMENT)
    return path
