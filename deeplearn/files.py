"""Files that a kill leaves old or new but never half written, JSON files that show damage, and the same in buckets."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from deeplearn.errors import UserError

BUCKETS = ("gs://",)
_CHECKSUM = "checksum"
_CHECKSUM_PREFIX = "crc32:"  # such a value under another key is a damaged checksum


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is an object's in a bucket, and no file's.

    >>> in_bucket("gs://bucket/run"), in_bucket("runs/gs")
    (True, False)
    """
    return os.fspath(path).startswith(BUCKETS)


def locate(path: str | os.PathLike) -> pathlib.Path:
    """`path` to open, join and list: a pathlib.Path, or for gs:// an etils.epath.Path, which has the same methods.

    A leading `~` or `~user` is expanded: shells do not expand it in `--workdir=~/runs/a`.

    >>> locate("runs/a") / "b"
    PosixPath('runs/a/b')
    >>> locate("~/runs") == pathlib.Path.home() / "runs"
    True
    """
    if not in_bucket(path):
        return pathlib.Path(os.path.expanduser(path))
    from etils import epath

    return epath.Path(path)


def reach(path: str | os.PathLike) -> pathlib.Path:
    """`locate`, after a look at what lies there if that is a bucket: without the client or credentials nothing works.

    Raises:
      UserError: the bucket cannot be reached.
    """
    place = locate(path)
    if in_bucket(path):
        try:
            place.exists()
        except ImportError as error:
            raise UserError(f"{path}: gs:// needs gcsfs; install it: pip install -e .[gcs]") from error
        except Exception as error:  # the clients have no base class for what can go wrong
            remedy = "correct the bucket's name, or run `gcloud auth application-default login`"
            raise UserError(f"cannot reach {path}: {cause(error)}; {remedy}") from error
    return place


def cause(error: BaseException) -> str:
    """An error in a few words on one line: the system's words for an OSError, else the type and the first line.

    >>> cause(OSError(5, "Input/output error", "a")), cause(ValueError("no\\nmore"))
    ('Input/output error', 'ValueError: no')
    """
    first, *_ = str(error).splitlines() or [""]
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {first[:200]}".removesuffix(": ")


def unreadable(
    what: str | os.PathLike, error: BaseException, remedy: str = "start again when it can be read"
) -> UserError:
    """The error for something that exists and cannot be read at present, which does not mean that it is damaged."""
    return UserError(f"cannot read {what}: {cause(error)}; nothing was changed; {remedy}")


def present(path: str | os.PathLike) -> bool:
    """Whether something lies at `path`, also a link without its target, whose disk may not be mounted.

    Raises UserError if the system does not tell.
    """
    place = locate(path)
    try:
        return place.exists() or not in_bucket(path) and place.is_symlink()
    except Exception as error:  # the clients of buckets have no base class for what can go wrong
        raise unreadable(path, error) from error


def check_regular(path: str | os.PathLike) -> None:
    """Raise OSError for a pipe, whose reader waits for a writer, a device, and a link without its target; else pass."""
    place = locate(path)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG if in_bucket(path) else place.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.ENXIO, "it is not a regular file", str(path))
        return
    if place.is_symlink():
        raise OSError(errno.ENXIO, "the target of this link is missing", str(path))


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file or of an object in a bucket; also raises what `check_regular` does."""
    check_regular(path)
    return locate(path).read_bytes()


def forget_listings(path: str | os.PathLike) -> None:
    """Make the next listing of a bucket ask the server: gcsfs remembers listings, which other processes change."""
    if in_bucket(path):
        from etils.epath import backend

        with contextlib.suppress(ImportError):  # without gcsfs there is another client, which remembers nothing
            backend.fsspec_backend.fs(path).invalidate_cache()


def remove_tree(path: pathlib.Path, ignore_errors: bool = False) -> None:
    """Delete a directory and all that is in it."""
    if in_bucket(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=ignore_errors)


def mirror(
    directory: str | os.PathLike,
    names: Sequence[str] = (),
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[pathlib.Path, Callable[..., None]]:
    """A local directory to append to files in, and a function that brings it to `directory`.

    An object in a bucket cannot be appended to: the files grow on this machine and replace the objects from time to
    time. Of a local `directory` it is the directory itself, and the function does nothing.

    Args:
      directory: where the files shall be.
      names: those that are to be there from the start, if they exist in `directory`.
      every: seconds between two copies.
      clock: tells the seconds.

    Returns:
      The local directory, and `push(now=False)`, which copies if it is time, or `now`.
    """
    place = locate(directory)
    if not in_bucket(directory):
        return place, lambda now=False: None
    keeper = tempfile.TemporaryDirectory()
    local, last = pathlib.Path(keeper.name), clock()  # deleted when nothing holds `keeper` any more
    for name in names:
        try:
            content = (place / name).read_bytes()
        except FileNotFoundError:
            continue
        except Exception as error:  # the clients have no base class for what can go wrong
            raise unreadable(place / name, error) from error
        (local / name).write_bytes(content)

    def push(now: bool = False) -> None:
        nonlocal last
        if now or clock() - last >= every:
            with writing(place):
                for file in sorted(pathlib.Path(keeper.name).rglob("*")):
                    if file.is_file():
                        (place / file.relative_to(local)).write_bytes(file.read_bytes())
            last = clock()

    return local, push


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn the system's refusal to write into a UserError that names the file.

    >>> with writing("none/x"):
    ...     open("none/x", "w")
    Traceback (most recent call last):
    deeplearn.errors.UserError: cannot write none/x: No such file or directory; put that right and ...
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {cause(error)}; put that right and run the same command again"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path beside `path` to write to: the file takes the place of `path` when the block is done.

    If the block fails, `path` is as it was. For an object in a bucket the path is a local one: an object is there whole
    or not at all, once it has been sent.

    Raises:
      UserError: the disk is full, or the directory is missing or forbidden.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("all of it")
    >>> [(path.name, path.read_text()) for path in folder.iterdir()]
    [('a.txt', 'all of it')]
    """
    if in_bucket(path):
        with writing(path), tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder, locate(path).name)
            yield temporary
            locate(path).write_bytes(temporary.read_bytes())
        return
    path = locate(path)
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    with writing(path):
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # the rename must not reach the disk before the content
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented, with a "checksum" over the rest, which `read_json` verifies.

    Args:
      path: the file, or an object in a bucket.
      content: what JSON can hold, which has no NaN and no infinity, without the key "checksum".

    Raises:
      UserError: the file cannot be written.
    """
    if _CHECKSUM in content:
        raise ValueError(f"{path}: the key {_CHECKSUM!r} is taken")
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: string keys, lists for tuples
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content | {_CHECKSUM: _checksum(content)}, indent=2) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike, remedy: str = "restore it from a copy, or move it away") -> dict[str, Any]:
    """The JSON object in a file, without its "checksum"; files without a checksum are accepted.

    Args:
      path: the file, or an object in a bucket.
      remedy: what the user can do if the file is damaged.

    Raises:
      FileNotFoundError, NotADirectoryError: there is no such file.
      UserError: the file cannot be read, or is damaged.

    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp(), "a.json")
    >>> write_json(file, {"seed": 3})
    >>> read_json(file)
    {'seed': 3}
    """
    try:
        data = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:  # the clients of buckets have no base class for what can go wrong
        raise unreadable(path, error) from error
    try:
        content, damage = json.loads(data.decode()), None
    except UnicodeDecodeError as error:
        content, damage = None, f"byte {error.start} is not UTF-8"
    except RecursionError:
        content, damage = None, "its JSON is nested too deeply"
    except ValueError as error:  # cut off, garbled, or a number of too many digits
        content, damage = None, f"it is not JSON: {error}" if data.strip() else "it is empty"
    if damage is None:
        damage = _damage(content)
    if damage:
        raise UserError(f"{path} is damaged ({damage}); {remedy}")
    content.pop(_CHECKSUM, None)
    return content


def _damage(content: Any) -> str | None:
    """What is wrong with the content of a JSON file, None if nothing is."""
    if not isinstance(content, dict):
        return "it is not a JSON object"
    rest = {name: value for name, value in content.items() if name != _CHECKSUM}
    misnamed = any(isinstance(value, str) and value.startswith(_CHECKSUM_PREFIX) for value in rest.values())
    if misnamed or _CHECKSUM in content and content[_CHECKSUM] != _checksum(rest):
        return "its checksum is wrong"
    return None


def _checksum(content: Mapping[str, Any]) -> str:
    return f"{_CHECKSUM_PREFIX}{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"
