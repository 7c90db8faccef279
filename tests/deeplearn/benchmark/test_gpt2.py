"""GPT-2's throughput: a small measurement on a CPU, and the arithmetic."""

import math

import pytest

from deeplearn.benchmark import gpt2, report
from deeplearn.parallel import topologies

SMALL = {"length": 16, "width": 32, "depth": 2, "heads": 2, "batch_size": 4, "precision": "float32"}


@pytest.mark.slow
def test_a_small_measurement(monkeypatch):
    """Every implementation that there is here has trained; one that fails says why."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    lines = []
    found = gpt2.measure(("xla", "reference"), 2, 0.01, lines.append, **SMALL)
    for f in found.values():
        assert f.tokens > 0 and len(f.rounds) == 2 and math.isnan(f.mfu)  # of a CPU no peak is known
    assert lines == ["gpt2: xla warms up", "gpt2: reference warms up", "gpt2: round 1 of 2", "gpt2: round 2 of 2"]


def test_utilization():
    """On an H200, 989 TFLOP a second: half of it is half."""
    f = gpt2.figures([(0.5, 7), (1.0, 9), (2.0, 8)], tokens=1000, flops=989e12 / 2, kind="NVIDIA H200")
    assert (f.tokens, f.mfu, f.peak_bytes) == (1000.0, 0.5, 9) and f.rounds == [2000.0, 1000.0, 500.0]


def test_the_goal():
    assert "met    50 % MFU" in report.gpt2_markdown({"cudnn": gpt2.Figures(1.0, [1.0], 0.5, 0)})
    assert "missed 50 % MFU: 0.0 %" in report.gpt2_markdown({"cudnn": "it failed"})


def test_every_chip_has_a_kind():
    assert set(topologies.KINDS.values()) == set(topologies.CHIPS)
    assert topologies.of_kind("NVIDIA H200") == topologies.CHIPS["h200"] and topologies.of_kind("abacus") is None
