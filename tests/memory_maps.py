"""The memory maps of this process, which compiled programs use up.

Linux allows a process 65,530 of them. A compiled program takes several, and without a free one XLA crashes.
"""

import pathlib

import jax

LIMIT = 20_000  # a file of tests adds up to 17,000


def count() -> int:
    """How many there are; 0 where the system does not say."""
    maps = pathlib.Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


def free(limit: int = LIMIT) -> None:
    """Drop all compiled programs if there are more maps than the limit."""
    if count() > limit:
        jax.clear_caches()
