"""The command: a step for machines that are not here, from end to end, and a user's mistakes."""

import re
import subprocess
import sys

import pytest

from deeplearn.commands import compile as command
from kernels.chips import tpu


def compiles(*arguments):
    line = [sys.executable, "-m", "deeplearn", "compile", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


@pytest.fixture
def libtpu():
    if tpu.find_libtpu() is None:
        pytest.skip("libtpu, which compiles for TPUs, is neither installed nor in the folder chips of the environment")


def figure(text, name):
    """A number of the printed table, its prefix taken into account."""
    number, prefix = re.search(rf"^  {name} +([\d.,]+) ([kMGTPEKi]*)", text, re.MULTILINE).groups()
    base = 1024 if prefix.endswith("i") else 1000
    return float(number.replace(",", "")) * base ** ("kMGTPE".index(prefix[0].replace("K", "k")) + 1 if prefix else 0)


@pytest.mark.slow
def test_175_billion_parameters_on_128_chips(libtpu):
    """State, FLOPs and collectives are those of the theory: ZeRO's over fsdp, Megatron-LM's over tensor."""
    mesh, topology = "--config.mesh=fsdp:16,tensor:8", "--topology=v5p:4x4x8"
    done = compiles("--config=experiments/gpt3.py", "--config.size=175b", topology, mesh)
    assert done.returncode == 0, done.stderr[-2000:]
    parameters, tokens, layers, width = 174.6e9, 1536 * 2048, 96, 12288
    assert figure(done.stdout, "parameters") == pytest.approx(4 * parameters / 128, rel=0.02)
    assert figure(done.stdout, "optimizer") == pytest.approx(8 * parameters / 128, rel=0.02)
    attention = 12 * 2048 * width * layers * tokens
    assert figure(done.stdout, "model") == pytest.approx(6 * parameters * tokens + attention, rel=0.01)
    assert 1 < 128 * figure(done.stdout, "compiled") / figure(done.stdout, "model") < 1.1
    # 32 parts, in each of which bfloat16 parameters are gathered forward and backward, and gradients scattered.
    part = 32 * 2 * parameters / 8 * 15 / 16
    assert figure(done.stdout, "all-gather") == pytest.approx(2 * part, rel=0.03)
    assert figure(done.stdout, "reduce-scatter") == pytest.approx(part, rel=0.03)
    sums = 4 * layers * 2 * (2 * tokens / 16 * width) * 7 / 8
    assert figure(done.stdout, "all-reduce") == pytest.approx(sums, rel=0.03)
    assert "fits" in done.stdout and "MFU" in done.stdout and "docs.cloud.google.com" in done.stdout


@pytest.mark.slow
def test_meshes_are_ranked(libtpu):
    """Fastest first; of an MLP none divides positions. What needs more memory than a chip has comes with how much."""
    done = compiles("--config=experiments/digits_mlp.py", "--topology=v5e:2x2", "--sweep_meshes")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 6 and {row[0].strip("| ") for row in rows} >= {"data:4", "fsdp:4", "data:2,tensor:2"}
    shares = [float(row[4].rstrip("%")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert "sequence:4 divides the positions of GPT" in done.stderr

    large = ("--config=experiments/gpt2.py", "--config.accumulate=1", "--config.mesh=data:4")
    done = compiles(*large, "--topology=v5e:2x2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"of 15.8 GiB: does not fit, 1\d\d.\d GiB are missing", done.stdout)
    assert "--config.accumulate" in done.stdout and "MFU" not in done.stdout


@pytest.mark.slow
def test_what_the_compiler_accepts_fits(libtpu):
    """Of a program whose allocations are together more than a chip has, and whose forward pass by itself is refused."""
    few = ("--config.batch_size=52", "--config.accumulate=4")
    done = compiles("--config=experiments/gpt2.py", *few, "--topology=v5e:1x1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of 16.0 GiB: fits" in done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--topology=v9:2x2"], "unknown chip 'v9'"),
        (["--topology=v5e"], "not of the form CHIP:SIZE"),
        ([], "flag --topology="),
    ],
)
def test_mistakes_give_one_line(arguments, said):
    done = compiles("--config=experiments/digits_mlp.py", *arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and said in errors[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "written, value, text",
    [
        (command.decimal, (1.474e9, "FLOP"), "1.47 GFLOP"),
        (command.decimal, (999.6e9, "B"), "1 TB"),
        (command.decimal, (2765e9, "B"), "2.77 TB"),
        (command.decimal, (1.2e21, "FLOP"), "1.2 ZFLOP"),
        (command.decimal, (0.0, "B"), "0 B"),
        (command.decimal, (0.0000123, "s"), "12.3 µs"),
        (command.decimal, (2e-9, "s"), "2 ns"),
        (command.binary, (2**30 * 1.5,), "1.5 GiB"),
        (command.binary, (100,), "100 B"),
        (command.binary, (2**20 * 1023,), "1,023.0 MiB"),
    ],
)
def test_numbers(written, value, text):
    assert written(*value) == text
