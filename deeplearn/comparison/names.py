"""The names of a comparison's files and directories: different texts get different names, inside their directory."""

import hashlib
import json
import re
from pathlib import Path

Run = tuple[dict[str, float], int]

LONGEST = 120  # characters of a name that is kept as it is; file systems allow 255 bytes
# name(key=value,key=value): of these `folder` could be inverted, which the order of the letters and digits shows.
_VALUE = r"-?[0-9][0-9.]*(e-?[0-9]+)?|True|False"
_ORDINARY = re.compile(rf"[a-z][a-z0-9_]*(\([a-z][a-z0-9_]*=({_VALUE})(, ?[a-z][a-z0-9_]*=({_VALUE}))*\))?")


def path(directory: Path, optimizer: str, phase: str, run: Run) -> Path:
    """The file of a run.

    Args:
      directory: of the workload.
      optimizer: as written, with its arguments.
      phase: "tune" or "final".
      run: hyperparameters and seed.

    >>> path(Path("runs"), "adam(b1=0.8)", "tune", ({"learning_rate": 0.1}, 3)).as_posix()
    'runs/adam-b1-0.8/tune-695828476d-3.json'
    """
    return directory / folder(optimizer) / f"{stem(optimizer, phase, run)}.json"


def stem(optimizer: str, phase: str, run: Run) -> str:
    """The name of a run's file, without its ending."""
    hyperparameters, seed = run
    return f"{phase}-{identity(optimizer, hyperparameters)}-{seed}"


def identity(optimizer: str, hyperparameters: dict[str, float]) -> str:
    """Ten letters that no two points of an optimizer share."""
    return hashlib.sha256(json.dumps([optimizer, hyperparameters]).encode()).hexdigest()[:10]


def folder(optimizer: str) -> str:
    """The name of an optimizer's directory; no two texts have the same one.

    An unusual text (other signs, upper case, very long) keeps its letters and gets a hash, after an @ that ordinary
    names do not have.

    >>> folder("adam(b1=0.8)"), folder("adam-b1-0.8")
    ('adam-b1-0.8', 'adam-b1-0.8@511bd2aaffc84c44')
    """
    if _ORDINARY.fullmatch(optimizer) and len(optimizer) <= LONGEST:
        return re.sub(r"[^a-z0-9_.TF]", "-", optimizer).strip("-")
    return _hashed(optimizer)


def _hashed(text: str) -> str:
    letters = re.sub(r"[^A-Za-z0-9_.]", "-", text)[:40].strip("-.")
    return f"{letters}@{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
