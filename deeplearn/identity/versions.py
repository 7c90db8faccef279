"""The versions of what computes, and the machine and kernels that computed."""

import hashlib
import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")
# Compilers and kernels of accelerators, by how their names begin: part of the identity where they are installed.
PLUGINS = ("libtpu", "jax-cuda", "jax-rocm", "nvidia-")
# Folders whose code only launches or draws: it cannot change a number.
NOT_COMPUTING = ("commands", "cloud", "pictures", "benchmark", "bench")
# Settings of JAX that change numbers; not those that only check, such as jax_debug_nans.
SETTINGS = (
    "jax_default_matmul_precision", "jax_enable_x64", "jax_numpy_dtype_promotion",
    "jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset", "jax_high_dynamic_range_gumbel",
    "jax_disable_jit", "jax_disable_most_optimizations", "jax_optimization_level", "jax_exec_time_optimization_effort",
    "jax_memory_fitting_level", "jax_memory_fitting_effort", "jax_use_shardy_partitioner",
    "jax_use_direct_linearize", "jax_softmax_custom_jvp", "jax_allow_f16_reductions",
)  # fmt: skip
# Settings of the libraries below JAX that change numbers: part of the identity where they are set.
VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def versions(libraries: Iterable[str] = ()) -> dict[str, str]:
    """The versions of Python, of this library and its code, of the packages that compute, and of `libraries`.

    Args:
      libraries: further packages, by the name of their import.

    >>> sorted(versions())[:3]
    ['deeplearn', 'flax', 'jax']
    """
    major, minor, _ = platform.python_version_tuple()
    named = {"python": f"{major}.{minor}", "deeplearn": f"{installed('deeplearn')}, code {code()}"}
    names = {name: name for name in (*PACKAGES, *_plugins())}
    names |= {name: _distribution(name) for name in libraries if name not in names}
    return named | {name: installed(package) or "unknown" for name, package in sorted(names.items())}


def _plugins() -> list[str]:
    names = (distribution.name for distribution in metadata.distributions())
    return sorted({name for name in names if name and name.startswith(PLUGINS)})


def installed(package: str) -> str | None:
    """The version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code() -> str:
    """The first 12 hexadecimal digits of a SHA-256 of this library's code and the measurements that choose kernels."""
    root = Path(__file__).resolve().parents[2]
    files = [
        *(root / "deeplearn").rglob("*.py"),
        *(root / "kernels").rglob("*.py"),
        *(root / "kernels").rglob("*.json"),
    ]
    named = {file.relative_to(root).as_posix(): file for file in files}
    computing = sorted(name for name in named if not set(NOT_COMPUTING) & set(name.split("/")))
    digest = hashlib.sha256()
    for name in computing:
        digest.update(f"{name}\0{hashlib.sha256(named[name].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """The platform, the kind of its devices, and the settings of XLA and JAX that change numbers.

    The number of devices is not among them: a run may go on with another mesh.
    """
    import jax

    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", os.environ.get("XLA_FLAGS", "")).split()
    there = jax.config.values  # some are no attributes of the config, and a version of JAX may lack one
    settings = {name.removeprefix("jax_"): getattr(jax.config, name, there.get(name)) for name in SETTINGS}
    settings |= {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    return {"platform": device.platform, "device": kind, "XLA_FLAGS": " ".join(flags), **settings}


def cores() -> int:
    """The threads that XLA divides sums among: $NPROC, or the CPU cores that this process may use."""
    if os.environ.get("NPROC", "").isdecimal():
        return int(os.environ["NPROC"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernels(experiment, devices=None) -> dict[str, str]:
    """The implementations of our kernels that a train step uses, such as {"convolution": "xla"}; nothing is computed.

    Args:
      experiment: an Experiment.
      devices: those of the mesh, JAX's own unless given.
    """
    import jax

    from deeplearn.parallel import mesh as meshes
    from kernels import target

    mesh = meshes.parse(experiment.config.mesh, devices)
    task, size = experiment.task, experiment.batch_size
    batch = {name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for name, x in experiment.data.spec.items()}

    def loss(batch):
        key = jax.random.key(0)
        return task.loss(*task.init(key), batch, key)

    with target.recorded() as used:
        jax.eval_shape(meshes.within(mesh, loss), batch)
    names = sorted({operation for operation, _ in used})
    return {name: ", ".join(sorted({how for operation, how in used if operation == name})) for name in names}


def _processor() -> str:
    """The model of the CPU and a digest of its vector instructions, for which XLA compiles."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    vector = (
        sorted(name for name in flags[1].split() if re.match("avx|fma|amx|sse|f16c|asimd|sve", name)) if flags else []
    )
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, vector instructions {hashlib.sha256(' '.join(vector).encode()).hexdigest()[:8]}"


def _distribution(name: str) -> str:
    """The package that an import comes from."""
    if installed(name):
        return name
    return metadata.packages_distributions().get(name, [name])[0]
