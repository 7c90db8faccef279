"""Faults of the system below a directory: calls that fail with an errno."""

import builtins
import contextlib
import hashlib
import io
import os
import threading

CALLS = ((os, "stat"), (os, "lstat"), (os, "listdir"), (os, "scandir"), (os, "open"), (io, "open"), (builtins, "open"))


@contextlib.contextmanager
def injected(monkeypatch, directory, chosen=lambda number, path: False, code=0, before=lambda number, path: None):
    """Let calls that look at something below `directory` fail with the errno `code`.

    Args:
      monkeypatch: pytest's.
      directory: where.
      chosen: `(number, path)`, whether the call of this number, from 0, fails.
      code: the errno.
      before: `(number, path)`, called before each call; what it does itself is not counted.

    Yields:
      The paths of the calls so far.
    """
    lock, calls, inside = threading.Lock(), [], threading.local()

    def wrapped(function):
        def call(path, *arguments, **kwargs):
            below = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(str(directory))
            if below and not getattr(inside, "hook", False):
                with lock:
                    number = len(calls)
                    calls.append(os.fspath(path))
                inside.hook = True
                try:
                    before(number, path)
                finally:
                    inside.hook = False
                if chosen(number, os.fspath(path)):
                    raise OSError(code, os.strerror(code), os.fspath(path))
            return function(path, *arguments, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, wrapped(getattr(module, name)))
        yield calls


def digest(directory):
    """A hash of all names, links, contents and times below a directory."""
    result = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        result.update(str(path.relative_to(directory)).encode() + str(path.lstat().st_mtime_ns).encode())
        result.update(
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"/"
        )
    return result.hexdigest()
