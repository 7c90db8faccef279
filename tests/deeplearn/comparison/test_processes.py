"""A sweep on two real processes of two devices each, against the same sweep in one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import json, sys
import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, processes, port, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, rank)

from pathlib import Path
from deeplearn import experiment
from deeplearn.comparison import points, protocol

config = experiment.configure("sequence_rnn", {"epochs": 2.0, "mesh": "data:1", "optimizer": "adam"})
wired = experiment.load("sequence_rnn").build(config)
for _ in range(2):
    found, works = protocol.run(Path(directory), "adam", wired, points.rates("adam", [1e-3, 2e-3, 3e-3]), (0, 1), 2)
    runs = [work.runs for work in works]
    losses = found.tuned.curves["validation/loss"].tolist()
    print(json.dumps([runs, found.winner, losses, found.final.test["loss"].tolist()]), flush=True)
"""


def launch(rank, processes, port, directory):
    flags = f"--xla_force_host_platform_device_count={4 // processes} --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(rank), str(processes), str(port), str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_sweep_as_one(tmp_path):
    """Every process ends with every run's curves; one of them writes; the second time nothing is trained."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    workers = [launch(rank, 2, port, tmp_path / "two") for rank in (0, 1)] + [launch(0, 1, port, tmp_path / "one")]
    outputs = []
    for worker in workers:
        out, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err
        outputs.append([json.loads(line) for line in out.splitlines() if line.startswith("[[")])
    zero, one, alone = outputs
    assert zero == one and [runs for runs, *_ in zero] == [[6, 2], []]
    assert zero[0][1] == alone[0][1] and zero[0][1:] == zero[1][1:]
    np.testing.assert_allclose(zero[0][2], alone[0][2], rtol=2e-3)
    np.testing.assert_allclose(zero[0][3], alone[0][3], rtol=2e-3)
    written = [sorted(path.name for path in (tmp_path / name / "adam").iterdir()) for name in ("one", "two")]
    assert written[0] == written[1] and len(written[0]) == 8 + 1  # the plan
