"""The contenders compute the same, and what is made of their times."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from kernels import bench
from kernels.convolution import backends, benchmark, convolution
from kernels.convolution.networks import Layer, depthwise
from kernels.convolution.windows import geometry

LAYERS = [
    Layer(6, 3, 4),
    Layer(6, 4, 6, strides=2),
    depthwise(6, 4, dilation=2),
    Layer(3, 4, 6, 4, 2, transposed=True),
    benchmark.Pool("max", 6, 3, 3, 2),
    benchmark.Pool("average", 6, 3, 2, 2),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "IMAGES", 2)
    monkeypatch.setattr(benchmark, "STEPS", 2)
    monkeypatch.setattr(benchmark, "RUNS", 2)


@pytest.mark.parametrize("mode", benchmark.MODES)
@pytest.mark.parametrize("case", LAYERS, ids=map(str, LAYERS))
def test_every_contender_runs(case, mode):
    found = benchmark.contenders(case, mode)
    assert {"xla", "Flax"} <= set(found)
    if importlib.util.find_spec("torch"):
        assert len(found) == (5 if mode == "vmap" else 4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Flax is written
        for make in found.values():
            make()()


@pytest.mark.parametrize("case", LAYERS[:3], ids=str)
def test_flax_computes_the_same(monkeypatch, case):
    """Of the same arrays, the same gradients."""
    fixed = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(benchmark.shapes(case))]

    def compute(function, *_):
        y, pull = jax.vjp(function, *fixed)
        return y, *pull(y)

    monkeypatch.setattr(benchmark, "timed", compute)
    for ours, theirs in zip(benchmark.ours(case, "call"), benchmark.plain(case, "call"), strict=True):
        assert jnp.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def row(name, mode, xla, flax, **torch):
    seconds = {"xla": xla, "Flax": flax} | {f"PyTorch {layout}": taken for layout, taken in torch.items()}
    return {"name": name, "mode": mode, "seconds": seconds}


def test_the_table():
    """Over the better of PyTorch's layouts; geometric means by kind, of all, and the least."""
    rows = [
        row(name, mode, 1.0, flax, contiguous=torch, channels_last=2 * torch)
        for mode in benchmark.MODES
        for name, flax, torch in (("8² 4→4 3×3", 8.0, 1.0), ("8² 4→8 3×3", 2.0, 4.0), ("8² 4 max 2×2", 4.0, 2.0))
    ]
    rows += [
        row(name, mode, 1.0, 4.0, contiguous=2.0)
        for mode in benchmark.MODES
        for name in ("a average", "transposed", "depthwise", "1×1", "3×3 /2")
    ]
    lines = {line.split(" | ")[0].strip("| "): line for line in benchmark.table(rows).splitlines()}
    assert lines["3x3"].count("2.00, 4.00") == 3 and lines["max pooling"].count("2.00, 4.00") == 3
    assert lines["the least"].count("1.00, 2.00") == 3 and lines["all"].count("2.00, 4.00") == 3


def test_the_choice_goes_by_the_measurement(monkeypatch):
    """By the nearest layer of the same kind: a stride, a kernel or groups are further than any size."""
    rows = [
        {"layer": Layer(32, 64, 64)._asdict(), "seconds": {"xla": 1.0, "lax": 2.0, "Flax": 0.5}},
        {"layer": Layer(8, 512, 512, strides=2)._asdict(), "seconds": {"xla": 2.0, "lax": 1.0}},
    ]
    monkeypatch.setattr(backends, "measured", lambda platform: rows)

    def chosen(layer):
        x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in layer.shapes(2))
        return backends.choose(geometry(x.shape[1:3], w.shape[:2], layer.strides, "SAME"), x, w, None)

    assert chosen(Layer(8, 512, 512)) == "xla" and chosen(Layer(32, 64, 64, strides=2)) == "lax"


def test_what_is_known_of_no_platform(monkeypatch):
    """The vendor's convolution."""
    monkeypatch.setattr(backends.target, "device", lambda: ("cuda", "NVIDIA H200"))
    monkeypatch.setattr(backends, "measured", lambda platform: [])
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    assert backends.choose(geometry((4, 4), (3, 3), 1, "SAME"), x, w, None) == "lax"
    assert "implementation=lax" in str(jax.make_jaxpr(convolution)(x, w))


@pytest.mark.skipif(not (bench.RESULTS / "convolution_cpu.json").exists(), reason="not measured")
def test_the_readme_has_the_figures_on_record():
    rows = json.loads((bench.RESULTS / "convolution_cpu.json").read_text())["rows"]
    assert benchmark.table(rows) in (bench.RESULTS.parents[1] / "README.md").read_text()
