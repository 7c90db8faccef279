"""When, where and how a run or a study was started, for its manifest."""

import datetime
import pathlib
import platform
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from deeplearn.identity import versions


def describe(command: Sequence[str]) -> dict[str, Any]:
    """When, where and how a run starts."""
    import jax

    device, *others = jax.devices()
    return {
        "command": shlex.join(command),
        "git": git(pathlib.Path(__file__).parent),
        "python": platform.python_version(),
        "devices": {"platform": device.platform, "kind": device.device_kind, "count": 1 + len(others)},
        "cores": versions.cores(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def git(directory: pathlib.Path) -> dict[str, Any] | None:
    """Commit and whether anything tracked differs from it; None outside git, or without git."""

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        commit = run("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(run("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
