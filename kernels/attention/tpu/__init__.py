"""Attention on TPUs, in Pallas: a tile of scores at a time in VMEM, the matrix products in the MXU."""

import jax
from jax.sharding import AxisType

from kernels.attention.request import Arrays, Request
from kernels.attention.tpu.backward import backward
from kernels.attention.tpu.forward import forward

__all__ = ["backward", "forward", "refuses"]

DEPTH = 256


def refuses(request: Request, arrays: Arrays) -> str | None:
    """A TPU has no float64; heads wider than DEPTH have not been compiled; XLA does not divide a kernel over a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if any(size > 1 and kind == AxisType.Auto for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)):
        return "is divided over a mesh within jax.shard_map, or by explicit axes, not by those that are Auto"
    if arrays.query.dtype == "float64":
        return "has no float64"
    depth = arrays.query.shape[3]
    return f"has head dims up to {DEPTH}, not {depth}" if depth > DEPTH else None
