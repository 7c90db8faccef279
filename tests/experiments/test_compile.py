"""Every experiment's train step compiled, as its recipe has it, for one TPU and one H200 that are not here."""

import json
import subprocess
import sys

import pytest

from kernels.chips import gpu, tpu
from tests.experiments.conftest import EXPERIMENTS

MISSING = {
    "v5p:1": lambda: None if tpu.find_libtpu() is not None else "no libtpu",
    "h200:1": gpu.missing,
}


@pytest.mark.slow
@pytest.mark.parametrize("topology", MISSING)
def test_it_compiles_and_fits(topology):
    """With the FLOPs of the formulas: more where something is computed anew, fewer where XLA leaves out padding."""
    if reason := MISSING[topology]():
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.experiments.compiled", topology]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tpu.RESULTS.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert sorted(found) == EXPERIMENTS
    assert not [name for name, step in found.items() if not step["fits"]]
    ratios = {name: step["flops"] / step["model"] for name, step in found.items()}
    assert not {name: ratio for name, ratio in ratios.items() if not 0.85 < ratio < 1.45}
