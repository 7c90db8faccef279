import pytest

from deeplearn.benchmark import report, sweeps


@pytest.mark.slow
def test_a_small_measurement():
    """Every figure is there, and each contender has really trained: a run takes time."""
    lines = []
    figures = sweeps.measure("sequence_rnn", lines.append, steps=4, eval_every=2)
    assert all(value > 0 for value in figures) and figures.sweep < figures.command < figures.processes
    assert figures.lane_bytes > 3 * 4 * 1153  # parameters and Adam's two moments
    assert len(lines) == 3 and "64 runs" in lines[0]


def test_a_command_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match="unknown experiment 'sequence_rn'"):
        sweeps.finish(sweeps.launch("sequence_rn", tmp_path, "train", tmp_path))


def test_the_table():
    figures = {
        "a": sweeps.Figures(10.0, 300.0, 5.0, 2.0, 1.0, 20.0, 2**20),
        "b": sweeps.Figures(10.0, 150.0, 5.0, 5.0, 1.0, 15.0, 2**19),
    }
    text = report.sweeps_markdown(figures)
    assert "| a | 10.0 s | 300 s | 30.0 x | 5.0 + 2.0 s | 1.0 + 20.0 s | 3.0 x | 10.0 x | 1.00 MB |" in text
    assert "missed 20.0 x 64 processes, least: 15.0" in text and "met    2.0 x a Python loop" in text
