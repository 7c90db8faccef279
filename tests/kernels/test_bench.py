import pytest

from kernels import bench


@pytest.mark.slow
def test_a_small_measurement(monkeypatch):
    """Each contender in a process of its own, all of them measured."""
    monkeypatch.setattr(bench, "TURNS", 1)
    found = bench.measure(16, ("xla", "reference"))
    assert set(found) == {"xla", "reference"}
    assert all(seconds > 0 and memory > 2**20 for seconds, memory in found.values())


def test_what_is_not_measured(capsys):
    assert bench.main(["nothing"]) == 2 and "usage" in capsys.readouterr().err
