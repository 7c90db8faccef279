import subprocess
import sys

import pytest

from deeplearn.__main__ import COMMANDS, overview
from deeplearn.experiment import HOME


def test_overview_has_every_command_and_experiment():
    lines = overview().splitlines()
    names = [*COMMANDS, *(path.stem for path in HOME.glob("[a-z]*.py"))]
    for name in names:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert len(line.split(maxsplit=1)[1]) > 10, line  # what it is


def test_no_command_shows_the_overview(run):
    assert run() == (0, overview() + "\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run, command):
    status, out, err = run(command, "--help")
    assert status == 0 and f"python -m deeplearn {command}" in out and "--" in out and not err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    """What makes it instant; the time itself is for the benchmark."""
    script = (
        "import sys\nfrom deeplearn.__main__ import main\n"
        f"assert main(['deeplearn', {command!r}, '--help']) == 0\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets', 'matplotlib', 'grain', 'torch', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
