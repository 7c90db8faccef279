import jax
import numpy as np

from kernels import target


def test_the_device():
    assert target.device() == (jax.devices()[0].platform, jax.devices()[0].device_kind)
    h200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", platform="gpu", num_cores=132)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=h200)):
        assert target.device() == ("cuda", "NVIDIA H200")
    with jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))):
        assert target.device()[0] == "cpu"
    with jax.default_device("cpu"):
        assert target.device()[0] == "cpu"


def test_formulas():
    """Within their context alone, whatever happens there."""
    assert not target.wants_formulas()
    try:
        with target.formulas(), target.formulas():
            assert target.wants_formulas()
            raise KeyError
    except KeyError:
        pass
    assert not target.wants_formulas()


def test_the_interpreter():
    """Within its context alone, whatever happens there."""
    assert target.interpreter() is None
    try:
        with target.interpreted("outer"), target.interpreted("inner"):
            assert target.interpreter() == "inner"
            raise KeyError
    except KeyError:
        pass
    assert target.interpreter() is None
