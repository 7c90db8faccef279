"""What a figure was measured on."""

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The processor's name, as its maker has it where the system tells."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict:
    """Cores, processor, system, versions, load and date, fit for JSON."""
    return {
        "cores": cores(),
        "processor": processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "load": os.getloadavg()[0],  # of the last minute: what else ran
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
