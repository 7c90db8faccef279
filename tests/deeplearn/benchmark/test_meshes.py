"""What a mesh costs: a small measurement, and the formulas."""

import pytest

from deeplearn.benchmark import meshes
from deeplearn.parallel.mesh import AXES


@pytest.mark.slow
def test_a_small_measurement(monkeypatch):
    """What is compiled sends what the formula says: nothing twice, nothing that was not meant."""
    monkeypatch.setattr(meshes, "MESHES", ["data:2"])
    found = {}

    class Connection:
        def send(self, message):
            if isinstance(message, dict):
                found.update(message)

    environment = {name: "" for name in ("XLA_FLAGS", "NPROC", "JAX_PLATFORMS")}
    for name in environment:
        monkeypatch.setenv(name, "")
    meshes.work(Connection(), rounds=1, seconds=0.01)
    figures = found["data:2"]
    assert figures.together > 0 and figures.each > 0
    assert figures.sent == pytest.approx(figures.theory, rel=0.02)


@pytest.mark.parametrize(
    "mesh, elements",
    [
        ("data:4", 2 * 1000 * 3 / 4),
        ("fsdp:2", 3 * 1000 / 2),
        ("tensor:2", 4 * 2 * (2 * 8 * 16) * 3 / 2),
        ("sequence:4", 2 * 1000 * 3 / 4 + (2 * 8 * 16) * 3 / 4 * 2 * 10),
    ],
)
def test_the_formulas(mesh, elements):
    assert meshes.theory(mesh, parameters=1000, batch=2, length=8, width=16, depth=3) == 4 * elements


def test_every_mesh_has_an_axis():
    for mesh in meshes.MESHES:
        axis, n = meshes.parts(mesh)
        assert axis in AXES and 1 < n <= meshes.DEVICES
