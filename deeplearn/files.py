"""Writing files so that a kill leaves the old or the new one, and a full disk one clear line; the same in buckets."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from deeplearn.errors import UserError

BUCKETS = ("gs://",)


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is an object's in a bucket, and no file's.

    >>> in_bucket("gs://bucket/run"), in_bucket("runs/gs")
    (True, False)
    """
    return os.fspath(path).startswith(BUCKETS)


def locate(path: str | os.PathLike) -> pathlib.Path:
    """`path` to open, join and list: a pathlib.Path, or for gs:// an etils.epath.Path, which has the same methods.

    >>> locate("runs/a") / "b"
    PosixPath('runs/a/b')
    """
    if not in_bucket(path):
        return pathlib.Path(path)
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
            cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            remedy = "correct the bucket's name, or run `gcloud auth application-default login`"
            raise UserError(f"cannot reach {path}: {cause}; {remedy}") from error
    return place


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
        if (place / name).exists():
            (local / name).write_bytes((place / name).read_bytes())

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
        cause = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {cause}; put that right and run the same command again") from error


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
    path = pathlib.Path(path)
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
