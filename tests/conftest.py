"""Strict numerics and eight CPU devices for every test."""

import importlib
import importlib.metadata
import os
import pkgutil

# Tests compile much and compute little: without LLVM's optimizations they take half the time, and a quarter less still
# without XLA's later emitters, which jax 0.11 has alone.
flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jax").startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
# A device may wait for the others a long time where the machine has more to do; XLA would give up after 40 s.
flags += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Devices that wait for each other in a collective hold a thread each; XLA's pool has one a core.
os.environ.setdefault("NPROC", "32")

import jax  # noqa: E402
import pytest  # noqa: E402

import deeplearn  # noqa: E402
import kernels  # noqa: E402
from deeplearn.parallel import compiler  # noqa: E402
from tests import memory_maps  # noqa: E402

# Before pytest loads a source for its examples: it would load it again where its package has imported it.
for root in (deeplearn, kernels):
    for module in pkgutil.iter_modules(root.__path__, f"{root.__name__}."):
        if module.ispkg:
            importlib.import_module(module.name)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def compiled_fast():
    """A run's own programs too, for which a level of optimization is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "options", lambda platform=None: {})
        yield


@pytest.fixture(autouse=True, scope="module")
def maps_freed():
    """After each file: a worker runs thousands of tests, and would run out of memory maps."""
    yield
    memory_maps.free()


@pytest.fixture
def key():
    return jax.random.key(0)
