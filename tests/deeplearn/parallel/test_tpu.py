"""The GPT on a mesh of TPUs that are not here: each device runs the Pallas kernel on what is its own."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kernels.chips import tpu

MESHES = ("data:2,tensor:2", "data:2,sequence:2")


@pytest.mark.slow
def test_the_kernel_is_divided():
    if tpu.find_libtpu() is None:
        pytest.skip("libtpu, which compiles for TPUs, is neither installed nor in the folder chips of the environment")
    command = [sys.executable, "-m", "tests.deeplearn.parallel.tpu_program", *MESHES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    kinds = {text: Counter(kind for _, kind in found[text]["collectives"]) for text in MESHES}
    kernels = {text: Counter(found[text]["kernels"]) for text in MESHES}
    assert kernels["data:2,tensor:2"] == {"attention_forward": 1, "attention_d_key": 1, "attention_d_query": 1}
    assert set(kinds["data:2,tensor:2"]) == {"all-reduce"}
    # Of the ring of two both steps; keys and values go on once each way, their gradients twice.
    assert kernels["data:2,sequence:2"] == {"attention_forward": 2, "attention_d_key": 2, "attention_d_query": 2}
    assert kinds["data:2,sequence:2"]["collective-permute"] == 8
    gathers = [shape for shape, kind in found["data:2,sequence:2"]["collectives"] if kind == "all-gather"]
    assert [re.match(r"\w+\[([\d,]*)\]", shape)[1] for shape in gathers] == ["512,256"]  # of positions, the gradient
