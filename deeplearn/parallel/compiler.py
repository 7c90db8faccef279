"""How XLA is to compile."""

from typing import Any

import jax


def options(platform: str | None = None) -> dict[str, Any]:
    """Compiler options for every program of a run, alone or in a sweep, so that both compute the same bits.

    platform: that of the devices; None for JAX's default.

    On a CPU LLVM's last levels make no program of ours faster, and compilation a fifth longer, that of integers (the
    order of the examples) three times.
    """
    return {"xla_backend_optimization_level": 1} if (platform or jax.default_backend()) == "cpu" else {}
