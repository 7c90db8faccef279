"""The file with the last commit that the workers of a TPU get, on this machine."""

import os
import urllib.parse
from pathlib import Path

from deeplearn.cloud.gcloud import Tpu, printable
from deeplearn.errors import UserError


def source(tpu: Tpu) -> str:
    """The file of the bundle for the workers: in the user's cache directory, named after project, zone and TPU.

    `quote` leaves no comma and no slash in a part, so that two TPUs never have the same file.
    """
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).absolute()
    parts = (tpu.project or os.environ.get("CLOUDSDK_CORE_PROJECT", ""), tpu.zone, tpu.name)
    return str(
        cache / "deeplearn" / "bundles" / f"{','.join(urllib.parse.quote(part, safe='') for part in parts)}.bundle"
    )


def make_private(directory: Path) -> None:
    """Create a directory that only this user can read: a bundle holds the whole history of the project.

    Raises UserError: it cannot be created, or belongs to another user.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)  # fails for another user's directory
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a directory of your own"
        raise UserError(f"cannot use {directory} for the bundle: {error.strerror}; {remedy}") from error


def not_written(tpu: Tpu, text: str) -> UserError:
    """The error when git, with these words, did not write the bundle of `life.pack`."""
    text = " ".join(printable(text).split())
    if ".lock" in text and "File exists" in text:
        lock = f"{source(tpu)}.lock"
        return UserError(f"another command is writing the bundle; run again, or delete {lock} if no other is running")
    return UserError(f"the workers get the last commit, and {text or 'there are changes since; commit them first'}")
