"""Memory of the C library that is kept for the next step."""

import ctypes
import sys

# Of glibc's mallopt: give nothing back, map nothing apart from the heap, and have one heap for all threads.
KEPT = {
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_MMAP_THRESHOLD": (-3, 2**30),
    "M_MMAP_MAX": (-4, 0),
    "M_ARENA_MAX": (-8, 1),
}


def keep() -> None:
    """On Linux, what a program frees stays with the process: call it before JAX starts.

    XLA asks for a program's temporary arrays at every call. Above 32 MB glibc returns them to the system, which clears
    every page anew: half of the time of a convolution's gradients on a CPU.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        for option in KEPT.values():
            getattr(library, "mallopt", lambda *_: 0)(*option)  # another C library has none
