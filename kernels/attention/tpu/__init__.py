"""Attention on TPUs, in Pallas: a tile of scores at a time in VMEM, the matrix products in the MXU."""

from kernels.attention.request import Arrays, Request
from kernels.attention.tpu.backward import backward
from kernels.attention.tpu.forward import forward

__all__ = ["backward", "forward", "refuses"]

DEPTH = 256


def refuses(request: Request, arrays: Arrays) -> str | None:
    """A TPU has no float64; heads wider than DEPTH have not been compiled."""
    if arrays.query.dtype == "float64":
        return "has no float64"
    depth = arrays.query.shape[3]
    return f"has head dims up to {DEPTH}, not {depth}" if depth > DEPTH else None
