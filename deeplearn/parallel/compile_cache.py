"""JAX's persistent compilation cache, with a checksum in each entry.

JAX 0.10 and 0.11 trust the files of the cache. A damaged entry makes JAX warn at each start and stays on disk, because
JAX never overwrites an entry; a flipped byte can even reach the executable. With `enable`, JAX deletes an entry that is
not intact, compiles the program again and writes a new entry. A directory that cannot be read or written costs
compilation time only.

An entry is the file `KEY-sha256-cache`: the SHA-256 of the key and the payload, 32 bytes, then the payload as JAX
compresses it. JAX without `enable` uses the name `KEY-cache`, so the two never read each other's entries.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from deeplearn.files import check_regular

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32


def enable(directory: str | os.PathLike) -> None:
    """Keep JAX's compiled programs in a directory, each entry with a checksum.

    If this version of JAX lacks the functions that are replaced here, JAX uses its own cache, without checksums.

    Args:
      directory: is created if needed; local or a bucket's URL. Several processes may share it. "~" is the user's home
        directory; if the user has none, there is no cache.
    """
    import jax

    directory = os.path.expanduser(os.fspath(directory))
    if directory.startswith("~"):
        logger.debug("no compilation cache: the user has no home directory")
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    try:
        # Private: JAX has no public way to choose the implementation of its cache.
        from jax._src import compilation_cache as jax_cache

        open_cache, read_entry, reset = (
            jax_cache.get_file_cache, jax_cache.get_executable_and_time, jax_cache.reset_cache,
        )  # fmt: skip
    except (ImportError, AttributeError) as error:
        logger.debug("JAX's compilation cache has no checksums: %s", error)
        return
    if isinstance(open_cache, functools.partial):  # enabled before
        return
    jax_cache.get_file_cache = functools.partial(_open, open_cache)
    jax_cache.get_executable_and_time = functools.partial(_read, read_entry, jax_cache)
    reset()  # a cache that is open already has no checksums


@dataclasses.dataclass(frozen=True)
class CheckedCache:
    """Implements JAX's cache interface (`get`, `put`, `_path`) on top of JAX's own cache.

    Fields:
      base: JAX's LRUCache, which reads entries, creates the directory and limits its size.
    """

    base: Any

    @property
    def _path(self):
        return self.base._path

    def get(self, key: str) -> bytes | None:
        """The payload of an entry; None if there is no intact entry."""
        try:
            check_regular(self._file(key))
            entry = self.base.get(_name(key))
        except (FileNotFoundError, TimeoutError):  # another process has just deleted the entry, or holds the lock
            return None
        except OSError:  # for example a directory in the entry's place
            entry = b""
        if entry is None:
            return None
        payload = unseal(key, entry)
        if payload is None:
            logger.debug("compiling %s again: its cache entry is damaged", key)
            self.remove(key)
            return None
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Write an entry, if that is possible: a full or read-only disk must not disturb the run."""
        entry = seal(key, payload)
        try:
            if self.base.eviction_enabled or "://" in str(self._path):
                self.base.put(_name(key), entry)
            else:
                _write(self._file(key), entry)
        except Exception as error:  # OSError, and what a bucket's file system raises
            logger.debug("cannot write the cache entry of %s: %s", key, error)

    def remove(self, key: str) -> None:
        """Delete an entry, if that is possible."""
        path = self._file(key)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except Exception as error:  # as for `put`
            logger.debug("cannot delete the cache entry of %s: %s", key, error)

    def _file(self, key: str):
        path = self._path / f"{_name(key)}-cache"  # the suffix is that of LRUCache
        return path if "://" in str(path) else Path(path)


def seal(key: str, payload: bytes) -> bytes:
    """The entry for a payload.

    >>> unseal("a", seal("a", b"program")), unseal("b", seal("a", b"program")), unseal("a", b"program")
    (b'program', None, None)
    """
    return hashlib.sha256(key.encode() + b"\0" + payload).digest() + payload


def unseal(key: str, entry: bytes) -> bytes | None:
    """The payload of an entry; None if the entry is damaged or belongs to another key."""
    payload = entry[DIGEST_BYTES:]
    return payload if seal(key, payload) == entry else None


def _name(key: str) -> str:
    return f"{key}-sha256"


def _write(path: Path, entry: bytes) -> None:
    """Write a file so that other processes see all of it or nothing."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(entry)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _open(open_cache, path: str):
    """Replaces JAX's `get_file_cache`: (cache, path), or None if the directory cannot be used."""
    try:
        opened = open_cache(path)
    except OSError as error:
        logger.debug("cannot use the compilation cache %s: %s", path, error)
        return None
    if opened is None or type(opened[0]).__name__ != "LRUCache":  # JAX's debugging option to verify the cache
        return opened
    return CheckedCache(opened[0]), opened[1]


def _read(read_entry, jax_cache, cache_key: str, *args, **kwargs):
    """Replaces JAX's `get_executable_and_time`: (executable, seconds), or (None, None) for an entry that fails to load.

    For example an entry that was compressed by zstd where JAX has zlib only.
    """
    try:
        return read_entry(cache_key, *args, **kwargs)
    except Exception as error:  # zlib, zstd and XLA raise types of their own; each means a miss
        logger.debug("compiling %s again: %s", cache_key, error)
        cache = getattr(jax_cache, "_cache", None)
        if isinstance(cache, CheckedCache):
            cache.remove(cache_key)
        return None, None
