"""The token by which the processes of a run know each other.

It comes from the environment variable DEEPLEARN_TOKEN, or from the file .token in the workdir, which process 0 creates
and which only its owner can read. Without either, a run's processes can meet on the loopback interface only.
"""

import contextlib
import ipaddress
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator

from deeplearn.errors import UserError
from deeplearn.files import in_bucket, locate, writing

VARIABLE = "DEEPLEARN_TOKEN"
FILE = ".token"
SHORTEST = 16  # characters
_SET = f"set {VARIABLE} to the same random characters on all processes, such as those of `openssl rand -hex 16`"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name, whatever the network.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("10.0.0.2")
    (True, True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find(host: str, workdir: str | os.PathLike | None) -> bytes | None:
    """The token of a run whose process 0 listens at `host`; None as long as the file in the workdir does not exist.

    Without a source of tokens (see `has_file`), that is b"" if the host is a loopback address.

    Raises:
      UserError: the token is too short, others can read its file, or there is none and the host is on a network.
    """
    if VARIABLE in os.environ:
        token = os.environ[VARIABLE].strip()
        if len(token) < SHORTEST:
            raise UserError(f"{VARIABLE} has {len(token)} characters of at least {SHORTEST}; {_SET}")
        return token.encode()
    if has_file(workdir):
        return read(locate(workdir) / FILE)
    if is_loopback(host):
        return b""
    raise UserError(f"several processes on a network need a token, by which they know each other; {_SET}")


def has_file(workdir: str | os.PathLike | None) -> bool:
    """Whether the token comes from a file in the workdir: not if it is in the environment, nor in a bucket."""
    return VARIABLE not in os.environ and workdir is not None and not in_bucket(workdir)


@contextlib.contextmanager
def provided(workdir: str | os.PathLike | None) -> Iterator[None]:
    """Create the workdir's token file if it is missing, for process 0; remove it again if the block raises.

    Directories that had to be created are removed too: a run that did not start leaves nothing.

    Raises:
      UserError: the file cannot be written.
    """
    if not has_file(workdir) or os.path.lexists(locate(workdir) / FILE):
        yield
        return
    path = locate(workdir).absolute() / FILE
    made = [path, *(directory for directory in path.parents if not directory.exists())]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{FILE}.{secrets.token_hex(8)}")  # others must not read half a token
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
        temporary.rename(path)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # of directories, those that others have not used meanwhile
            path.unlink()
            for directory in made[1:]:
                directory.rmdir()
        raise


def read(path: pathlib.Path) -> bytes | None:
    """The token in a file; None if there is no file.

    Raises:
      UserError: the file is not a regular file of this user, others can read it, or it holds no token.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            token = file.read(4096).strip() if stat.S_ISREG(status.st_mode) else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read the token in {path}: {error.strerror}; delete it, or {_SET}") from error
    wrong = _wrong(status, token)
    if wrong:
        raise UserError(f"{path} {wrong}, so it cannot be trusted as this run's token; delete it, or {_SET}")
    return token


def _wrong(status: os.stat_result, token: bytes) -> str | None:
    """Why a file is not a token, if it is not."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid} and not to {os.geteuid()}"
    if status.st_mode & 0o077:
        return f"is of mode {stat.S_IMODE(status.st_mode):04o} and not 0600"
    if len(token) < SHORTEST:
        return f"has {len(token)} characters of at least {SHORTEST}"
    return None
