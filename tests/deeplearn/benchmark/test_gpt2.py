"""GPT-2's throughput: a small measurement on a CPU, and the arithmetic."""

import math
from types import SimpleNamespace

import pytest

from deeplearn.benchmark import gpt2, report
from deeplearn.parallel import topologies
from deeplearn.training import program
from kernels.attention import backends

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


def test_the_clock_sees_one_program(monkeypatch):
    """The data of a chunk of other steps are of another shape, for which all would be compiled anew."""
    shapes, sent, asked, build = [], [], iter((0.001, 0.05, 0)), program.build

    def watched(e):
        built = build(e)

        def chunk(state, data, steps):
            shapes.append(data["tokens"].shape)
            return built.chunk(state, data, steps)

        return built._replace(chunk=chunk)

    monkeypatch.setattr(program, "build", watched)
    monkeypatch.setattr(backends, "fastest", backends.fastest)  # put back after
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    gpt2.work(SimpleNamespace(send=sent.append, recv=lambda: next(asked)), "xla", SMALL)
    assert set(shapes) == {(1, 4, 17)} and len(sent) == 3


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
