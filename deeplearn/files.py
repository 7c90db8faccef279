"""Writing files so that a kill leaves the old or the new one, and a full disk one clear line."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from deeplearn.errors import UserError


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

    If the block fails, `path` is as it was.

    Raises:
      UserError: the disk is full, or the directory is missing or forbidden.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("all of it")
    >>> [(path.name, path.read_text()) for path in folder.iterdir()]
    [('a.txt', 'all of it')]
    """
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
