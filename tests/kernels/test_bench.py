import functools
import json

import jax.numpy as jnp
import pytest

from kernels import bench
from kernels.attention import attention, benchmark


@pytest.mark.slow
def test_a_small_measurement(monkeypatch):
    """Each contender in a process of its own, all of them measured."""
    monkeypatch.setattr(bench, "TURNS", 1)
    names = ("xla", "reference")
    found = bench.in_processes({name: functools.partial(benchmark.ours, name, 16) for name in names})
    assert tuple(found) == names
    assert all(seconds > 0 and memory > 2**20 for seconds, memory in found.values())


def test_turns_in_one_process(monkeypatch):
    """What fails is named with its reason, and the others are measured."""
    monkeypatch.setattr(bench, "TURNS", 3)
    monkeypatch.setattr(bench, "SECONDS", 0.001)
    calls = {"a": 0, "b": 0}

    def make(name):
        def run():
            calls[name] += 1

        return run

    def broken():
        raise ValueError("no such thing\nmore")

    found = bench.in_turns({"a": functools.partial(make, "a"), "broken": broken, "b": functools.partial(make, "b")})
    assert found["broken"] == "ValueError: no such thing" and 0 < found["a"] < 1 and 0 < found["b"] < 1
    assert min(calls.values()) > 3


def test_a_row_of_the_gpu_table(monkeypatch, capsys):
    """On a CPU, with what runs there."""
    monkeypatch.setattr(bench, "TURNS", 1)
    monkeypatch.setattr(bench, "SECONDS", 0.001)
    contenders = {
        "xla": functools.partial(attention, is_causal=True, implementation="xla"),
        "hopper": functools.partial(attention, is_causal=True, implementation="hopper"),
    }
    row = benchmark._row((1, 16, 2, 8), jnp.bfloat16, contenders, ["causal"])
    assert row["features"] == ["causal"] and set(row["seconds"]) == set(row["forward"]) == {"xla"}
    assert "runs on cuda, and this is cpu" in row["seconds failed"]["hopper"]
    assert "B1 T16 N2 D8 causal, forward and backward, TFLOP/s: xla" in capsys.readouterr().out


@pytest.mark.parametrize("causal, wanted", [(False, 4e-12 * 2 * 3 * 5**2 * 7), (True, 2e-12 * 2 * 3 * 5**2 * 7)])
def test_operations(causal, wanted):
    assert benchmark.teraflops((2, 5, 3, 7), causal) == pytest.approx(wanted)


def test_features_mean_the_same(monkeypatch):
    """Our arguments and the masks that others get: the same attention."""
    import jax

    monkeypatch.setattr(benchmark, "TOKENS", 64)
    monkeypatch.setattr(benchmark, "HIDDEN", 16)
    query, key, value = benchmark.arrays((2, 32, 2, 8), jnp.bfloat16, 3)
    for feature, (ours, theirs) in benchmark.features(32, 8).items():
        found = attention(query, key, value, implementation="reference", **ours)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            plain = (
                benchmark.capped if feature == "soft cap" else functools.partial(jax.nn.dot_product_attention, **theirs)
            )
            wanted = plain(query, key, value)
        assert jnp.abs(found - wanted).astype(jnp.float32).max() < 0.05, feature


def test_the_readme_has_the_figures_on_record():
    root = bench.RESULTS.parents[1]
    rows = json.loads((bench.RESULTS / "attention_cpu.json").read_text())["rows"]
    assert benchmark.table(rows) in (root / "README.md").read_text()


def test_what_is_saved(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    rows = [{"length": 1, "depth": 1, "features": [], "seconds": {"xla": 1.0}}]
    monkeypatch.setattr(benchmark, "on_cpu", lambda: rows)
    assert bench.main(["attention"]) == 0 and not (tmp_path / "results").exists()
    assert bench.main(["attention", "--save"]) == 0
    saved = json.loads((tmp_path / "results" / "attention_cpu.json").read_text())
    assert saved["rows"] == rows and saved["versions"]["jax"] and saved["device"] and saved["date"]


def test_what_is_not_measured(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["nothing"])
    assert stopped.value.code == 2 and "invalid choice" in capsys.readouterr().err
