"""The `gcloud` command lines in the life of a TPU, and what their failures mean to the user.

Flags and states are those of the Cloud SDK's reference (gcloud compute tpus queued-resources and tpu-vm) and of the TPU
API, v2 (QueuedResourceState, Node.State).
"""

import re
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from deeplearn.errors import UserError

RESOURCES = ("gcloud", "compute", "tpus", "queued-resources")
NODES = ("gcloud", "compute", "tpus", "tpu-vm")

INSTALL = {
    "gcloud": "install the Google Cloud CLI (cloud.google.com/sdk), then run `gcloud auth login`",
    "git": "install git",
}

# By the first letters of the accelerator's type: the image that Google names for JAX.
RUNTIMES = {
    "v6e-": "v2-alpha-tpuv6e",
    "v5p-": "v2-alpha-tpuv5",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v4-": "tpu-ubuntu2204-base",
    "v3-": "tpu-ubuntu2204-base",
    "v2-": "tpu-ubuntu2204-base",
}

# A machine that is taken away hangs up on nobody: ssh has to ask whether it is there, or waits for hours.
ALIVE = ("-oConnectTimeout=30", "-oServerAliveInterval=15")

SHOWN = 300  # characters of a line that are shown

# What gcloud says of troubles that pass, whatever it advises.
PASSING = r"per minute|Max retries exceeded|internal_failure"

# What gcloud says when the resource isn't there. "not found" alone may be said of a host, a file or a program.
MISSING = r"NOT_FOUND|(?i:(?:resource|entity)\s+(?:was )?not found)"

# What gcloud says, and what to do about it; the first that fits. An unknown zone is reported as one without permission.
REFUSALS = (
    (
        r"[Pp]ermission denied on '?locations/|[Ii]nvalid (?:value for )?zone|zone.* (?:was )?not found",
        "this project has no zone {zone} with TPUs; `gcloud compute tpus locations list` shows those there are",
    ),
    (
        r"queued-resources\.create\).*(?:NOT_FOUND|not found)",
        "correct --accelerator, --runtime or what --create names",
    ),
    (
        r"not present in the SSH agent",
        "gcloud's key has to be with the ssh-agent that runs here; `ssh-add ~/.ssh/google_compute_engine`",
    ),
    (
        r"gcloud auth login|active account|[Rr]eauthenticat|invalid_grant|UNAUTHENTICATED",
        "gcloud is not authenticated; run `gcloud auth login`",
    ),
    (
        r"\[(?:core/)?project\]",
        "gcloud has no project; give --project, or run `gcloud config set project PROJECT`",
    ),
    (
        r"RESOURCE_EXHAUSTED|[Qq]uota",
        "the quota is used up; delete what is not needed (`gcloud compute tpus queued-resources list --zone={zone}`), "
        "choose another --zone or --accelerator, or ask for more quota",
    ),
    (
        r"ALREADY_EXISTS|already exists",
        "the name {name} is in use in {zone}; choose another --name, "
        "or go on with it (--do=watch) or delete it (--do=delete)",
    ),
    (
        r"PERMISSION_DENIED|does not have permission|SERVICE_DISABLED|has not been used in project",
        "the account may not do that; the project needs the API (`gcloud services enable tpu.googleapis.com`) and the "
        "account the role roles/tpu.admin",
    ),
    (r"INVALID_ARGUMENT", "correct --accelerator or --runtime"),
)


class Tpu(NamedTuple):
    """What is asked for.

    Fields:
      name: of the queued resource and of its one node.
      zone: where.
      accelerator: its type, as v5litepod-16.
      runtime: the image of its machines; empty: by the accelerator.
      project: empty: gcloud's own.
      spot: may be taken away at any moment, and costs less.
      create: further flags of `queued-resources create`, as --network=NET.
    """

    name: str
    zone: str
    accelerator: str = ""
    runtime: str = ""
    project: str = ""
    spot: bool = False
    create: tuple[str, ...] = ()


class Failed(Exception):
    """A gcloud command that failed in a way that may pass: a connection, a service that is down, an unreadable answer.

    Its one line is the last that gcloud said, or what is wrong with the answer.
    """


class Missing(Failed):
    """The resource is not there."""


def runtime(tpu: Tpu) -> str:
    """The image of the TPU's machines.

    >>> runtime(Tpu("a", "z", "v5litepod-16")), runtime(Tpu("a", "z", "v4-8", runtime="mine"))
    ('v2-alpha-tpuv5-lite', 'mine')
    """
    if tpu.runtime:
        return tpu.runtime
    for prefix, image in RUNTIMES.items():
        if tpu.accelerator.startswith(prefix):
            return image
    raise UserError(
        f"which image {tpu.accelerator or 'a TPU of no type'} needs is not known; give --runtime, or an --accelerator "
        f"that begins with {', '.join(RUNTIMES)}"
    )


def _at(tpu: Tpu) -> list[str]:
    return [f"--zone={tpu.zone}", *([f"--project={tpu.project}"] if tpu.project else []), "--quiet"]


def create(tpu: Tpu) -> list[str]:
    """Ask for the TPU; it comes when there is one.

    >>> import shlex
    >>> print(shlex.join(create(Tpu("a", "us-central2-b", "v4-8", spot=True))))
    gcloud compute tpus queued-resources create a --node-id=a --accelerator-type=v4-8
      --runtime-version=tpu-ubuntu2204-base --spot --zone=us-central2-b --quiet
    """
    kind = [f"--accelerator-type={tpu.accelerator}", f"--runtime-version={runtime(tpu)}"]
    return [
        *RESOURCES, "create", tpu.name, f"--node-id={tpu.name}", *kind, *(["--spot"] if tpu.spot else []), *tpu.create,
        *_at(tpu),
    ]  # fmt: skip


def describe(tpu: Tpu) -> list[str]:
    """The resource, in JSON."""
    return [*RESOURCES, "describe", tpu.name, *_at(tpu), "--format=json"]


def delete(tpu: Tpu) -> list[str]:
    """Delete the resource, its node first."""
    return [*RESOURCES, "delete", tpu.name, "--force", *_at(tpu)]


def node(tpu: Tpu) -> list[str]:
    """The state of the node."""
    return [*NODES, "describe", tpu.name, *_at(tpu), "--format=value(state)"]


def ssh(tpu: Tpu, command: str) -> list[str]:
    """Run a shell's command on every worker at once."""
    flags = [f"--ssh-flag={flag}" for flag in ALIVE]
    return [*NODES, "ssh", tpu.name, "--worker=all", f"--command={command}", *flags, *_at(tpu)]


def scp(tpu: Tpu, source: str, name: str) -> list[str]:
    """Copy a file to every worker's home directory, under a name."""
    flags = [f"--scp-flag={flag}" for flag in ALIVE]
    return [*NODES, "scp", source, f"{tpu.name}:{name}", "--worker=all", *flags, *_at(tpu)]


def failure(tpu: Tpu, text: str) -> Exception:
    """What a command that failed, and said `text`, means: a UserError with a remedy, Missing, or Failed.

    >>> failure(Tpu("a", "z"), "ERROR: (gcloud) PERMISSION_DENIED: Permission denied on 'locations/z'")
    UserError("this project has no zone z with TPUs; ...
    """
    text = re.sub(r"DEEPLEARN_TOKEN=\S+", "DEEPLEARN_TOKEN=...", text)  # secret: not for a log
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith(("SSH:", "#####"))]
    # Lines of gcloud's own. A worker's programs print "ERROR:" too, as pip does, and any words after it.
    own = [i for i, line in enumerate(lines) if line.startswith(("ERROR: (gcloud", "ERROR: gcloud"))]
    if any(line.endswith("worker.sh: No such file or directory") for line in lines):
        return UserError(f"nothing is installed on {tpu.name} yet; --do=install does it")
    if not own:
        return Failed(printable(lines[-1])[:SHOWN] if lines else "it said nothing")
    said, text = printable(lines[own[0]])[:SHOWN], "\n".join(lines[own[0] :])
    text = re.sub(r"'projects/[^']*'", "", text)  # names, which may hold any of the words
    if re.search(PASSING, text):
        return Failed(said)
    for pattern, remedy in REFUSALS:
        if re.search(pattern, text):
            return UserError(f"{remedy.format(name=tpu.name, zone=tpu.zone)} (gcloud: {said})")
    return (Missing if re.search(MISSING, text) else Failed)(said)


def printable(text: str) -> str:
    r"""Text on one line, without terminal escapes: control characters and line separators become spaces.

    >>> printable("\x1b[31mloss\x1b[0m 0.5\u2028worker b lost\r\n")
    'loss 0.5 worker b lost'
    """
    text = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])", "", text)
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def call(argv: Sequence[str], explain: Callable[[str], Exception]) -> tuple[str, str]:
    """Run a command line.

    Args:
      argv: the program and its arguments.
      explain: what the program's words mean if it fails.

    Returns:
      What it printed on standard output and on standard error. Bytes that are no UTF-8 become U+FFFD; line ends stay
      as they are.

    Raises:
      UserError: the program cannot be run.
      Exception: what `explain` returns.
    """
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise UserError(f"{argv[0]} is not on the PATH; {INSTALL[argv[0]]}") from error
    except OSError as error:  # not executable, for example
        raise UserError(f"{argv[0]} cannot be run: {error.strerror}; {INSTALL[argv[0]]}") from error
    out, err = (output.decode(errors="replace") for output in (done.stdout, done.stderr))
    if done.returncode:
        raise explain(err if err.strip() else out)
    return out, err
