"""manifest.json: what a run is, so that it can be made again, and who has its workdir now."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from deeplearn.errors import UserError
from deeplearn.files import in_bucket, locate, replacing, writing

MANIFEST = "manifest.json"
LOCK = ".lock"
PACKAGES = ("deeplearn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write(
    workdir: str | os.PathLike, config: Mapping[str, Any], experiment: str, command: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write `workdir`/manifest.json, atomically, and return what is in it.

        config, experiment      as given
        seed                    the config's
        command                 the command line, quoted for a shell
        git                     {"commit": ..., "dirty": ...} of the code, None outside git
        versions                of Python and the packages that compute
        devices                 {"platform": ..., "kind": ..., "count": ...}
        started                 ISO 8601, with the zone
        resumed                 the last five again, of each later start in this workdir

    Args:
      workdir: an existing directory.
      config: nested dictionaries of what JSON can hold.
      experiment: the path of the experiment file.
      command: the command line, `sys.argv` by default.

    Raises:
      UserError: the file cannot be written.
    """
    import jax

    device, *others = jax.devices()
    launch = {
        "command": shlex.join(sys.argv if command is None else command),
        "git": _git(pathlib.Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "devices": {"platform": device.platform, "kind": device.device_kind, "count": 1 + len(others)},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    if exists(workdir):
        manifest = read(workdir)
        manifest["resumed"].append(launch)
    else:
        manifest = {"config": config, "experiment": str(experiment), "seed": config.get("seed")}
        manifest |= launch | {"resumed": []}
    with replacing(locate(workdir) / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def exists(workdir: str | os.PathLike) -> bool:
    """Whether `workdir` is that of a run."""
    return (locate(workdir) / MANIFEST).is_file()


def read(workdir: str | os.PathLike) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
      UserError: there is no manifest, or it cannot be read.
    """
    try:
        manifest = json.loads((locate(workdir) / MANIFEST).read_text())
        return {"resumed": [], **manifest}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{workdir} is not a run: it has no {MANIFEST}; give the --workdir of a `deeplearn train`"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{workdir} is not a run: its {MANIFEST} cannot be read ({error})") from error


def check_same(workdir: str | os.PathLike, config: Mapping[str, Any], may_change: Sequence[str] = ()) -> None:
    """Refuse to go on in a workdir with another config; one without a manifest will do for any.

    Args:
      workdir: any directory.
      config: as for `write`.
      may_change: fields, as "data.path", that need not be the same.

    Raises:
      UserError: names the first fields that differ, and both values.
    """
    if not exists(workdir):
        return
    there, here = _fields(read(workdir)["config"]), _fields(json.loads(json.dumps(config)))
    names = [name for name in there | here if name not in may_change]
    differ = [name for name in names if there.get(name, _ABSENT) != here.get(name, _ABSENT)]
    if differ:
        which = ", ".join(
            f"{name} is {there.get(name, _ABSENT)} there and {here.get(name, _ABSENT)} here" for name in differ[:3]
        )
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise UserError(
            f"{workdir} holds a run with another config: {which}{more}; "
            f"choose another --workdir, or the old value with --config.{differ[0]}={there.get(differ[0], _ABSENT)}"
        )


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Hold `workdir`, made if need be, for this process alone; the kernel frees it however the process ends.

    A bucket has no locks, and a lock that no kernel frees would outlive a machine that is taken away: there nothing is
    held, and whoever starts runs sees to it that each workdir has one.

    Raises:
      UserError: another process holds it, or the directory cannot be made.
    """
    if in_bucket(workdir):
        yield
        return
    path = pathlib.Path(workdir) / LOCK
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        with writing(path):  # disks that many machines see need not have locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                pid = file.read()
                raise UserError(
                    f"process {pid} is at work in {workdir}; wait for it, stop it with `kill {pid}`, "
                    "or choose another --workdir"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


_ABSENT = "absent"


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted path."""
    fields = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping) and value
        fields |= _fields(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return fields


def _git(directory: pathlib.Path) -> dict[str, Any] | None:
    """Commit and whether anything tracked differs from it; None outside git, or without git."""

    def run(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        commit = run("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(run("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
