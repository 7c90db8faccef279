"""Processes that share a compilation cache, and what happens to its files between their starts."""

import json
import lzma
import os
import resource
import shutil
import subprocess
import sys
import types
import zlib
from pathlib import Path

import pytest

from deeplearn.parallel import compile_cache

ROOT = Path(__file__).resolve().parents[3]

# Compiles a function for each name, and prints for each its result and whether JAX found it in the cache.
PROGRAM = """
import json, sys
import jax
import numpy as np
from deeplearn.parallel import compile_cache

directory, *names = sys.argv[1:]
compile_cache.enable(directory)
compile_cache.enable(directory)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
events, results = [], {}
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
for number, name in enumerate(names):
    def function(x):
        return (x + number) @ x
    function.__name__ = name
    events.clear()
    result = float(jax.jit(function)(np.arange(4.0, dtype=np.float32)))
    results[name] = [result, "/jax/compilation_cache/cache_hits" in events]
print(json.dumps(results))
"""


def start(directory, *names, limit=None, **variables):
    """The running program.

    limit: the greatest size of a file that it can write, in bytes.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), *names],
        env={**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )


def finish(process):
    """(result of each function, names that JAX found in the cache, standard error) of a program."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    results = json.loads(out)
    hits = {name for name, (_, hit) in results.items() if hit}
    return {name: value for name, (value, _) in results.items()}, hits, err


def entry(directory, name):
    """The one file of a function's entry."""
    (path,) = directory.glob(f"jit_{name}-*")
    return path


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def flip(position):
    """A function of a path, that flips a bit of one byte."""

    def damage(path):
        data = bytearray(path.read_bytes())
        data[position if position >= 0 else len(data) + position] ^= 1
        path.write_bytes(data)

    return damage


def store(payload):
    """A function of a path, that writes an entry with the right checksum; `payload` is a function of the payload."""

    def damage(path):
        key = path.name.removesuffix("-sha256-cache")
        change(path, lambda data: compile_cache.seal(key, payload(compile_cache.unseal(key, data))))

    return damage


def replace_by_directory(path):
    path.unlink()
    path.mkdir()


def replace_by_full_directory(path):
    replace_by_directory(path)
    (path / "file").write_text("text")


def replace_by_link(path):
    path.unlink()
    path.symlink_to("absent")


DAMAGES = {
    "truncated": lambda path: change(path, lambda data: data[: len(data) // 2]),
    "one_byte_short": lambda path: change(path, lambda data: data[:-1]),
    "one_byte_long": lambda path: change(path, lambda data: data + b"\0"),
    "checksum_only": lambda path: change(path, lambda data: data[: compile_cache.DIGEST_BYTES]),
    "shorter_than_the_checksum": lambda path: change(path, lambda data: data[:7]),
    "emptied": lambda path: change(path, lambda data: b""),
    "zeros": lambda path: change(path, lambda data: bytes(len(data))),
    "flip_first": flip(0),
    "flip_end_of_checksum": flip(31),
    "flip_start_of_payload": flip(32),
    "flip_100": flip(100),
    "flip_1000": flip(1000),
    "flip_last": flip(-1),
    "without_checksum": lambda path: change(path, lambda data: data[compile_cache.DIGEST_BYTES :]),
    "other_entry": lambda path: shutil.copy(entry(path.parent, "intact"), path),
    "other_compression": store(lambda payload: lzma.compress(zlib.decompress(payload))),
    "not_decompressible": store(lambda payload: payload[:2] + b"no stream"),
    "not_executable": store(lambda payload: zlib.compress(b"\0\0\0\1no executable")),
    "directory": replace_by_directory,
    "full_directory": replace_by_full_directory,
    "dangling_link": replace_by_link,
    "deleted": Path.unlink,
}


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Three starts of the program; after the first, each function's entry is damaged in another way."""
    directory = tmp_path_factory.mktemp("cache") / "made" / "by the program"
    names = [*DAMAGES, "intact"]
    first = finish(start(directory, *names))
    sizes = {name: entry(directory, name).stat().st_size for name in names}
    assert min(sizes.values()) > 1000
    for name, damage in DAMAGES.items():
        damage(entry(directory, name))
    second = finish(start(directory, *names))
    return directory, first, second, finish(start(directory, *names))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_entry_is_replaced_once(starts, name):
    directory, (expected, hits, _), (second, second_hits, _), (third, third_hits, _) = starts
    assert name not in hits and name not in second_hits and name in third_hits
    assert expected[name] == second[name] == third[name]
    key = entry(directory, name).name.removesuffix("-sha256-cache")
    assert compile_cache.unseal(key, entry(directory, name).read_bytes())


def test_an_intact_entry_is_used(starts):
    directory, (_, first, _), (_, second, _), (_, third, _) = starts
    assert not first and second == {"intact"} and third == {*DAMAGES, "intact"}


def test_no_start_prints_a_warning(starts):
    _, *runs = starts
    assert [err for _, _, err in runs] == ["", "", ""]


def test_no_other_file_stays(starts):
    directory, *_ = starts
    assert len(list(directory.iterdir())) == len(DAMAGES) + 1


def read_only(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o555)
    return tmp_path / "cache"


def file(tmp_path):
    (tmp_path / "file").write_text("text")
    return tmp_path / "file"


UNUSABLE = {
    "read-only": read_only,  # except for root
    "a file": file,
    "inside a file": lambda tmp_path: file(tmp_path) / "cache",
    "nobody can write there": lambda tmp_path: Path("/proc"),
    "nobody can create it": lambda tmp_path: Path("/proc/deeplearn"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_directory_costs_time_only(tmp_path, name):
    results, hits, err = finish(start(UNUSABLE[name](tmp_path), "a", "b"))
    assert (results, hits, err) == ({"a": 14.0, "b": 20.0}, set(), "")


def test_a_full_disk_costs_time_only(tmp_path):
    """It leaves no partial entry."""
    for _ in range(2):
        assert finish(start(tmp_path, "a", "b", limit=500)) == ({"a": 14.0, "b": 20.0}, set(), "")
        assert list(tmp_path.iterdir()) == []


def test_processes_share_a_directory(tmp_path):
    names = ["a", "b", "c"]
    for result in list(map(finish, [start(tmp_path, *names) for _ in range(2)])):
        assert result[0] == {"a": 14.0, "b": 20.0, "c": 26.0} and result[2] == ""
    assert finish(start(tmp_path, *names))[1] == {*names}


def test_a_cache_of_limited_size(tmp_path):
    pytest.importorskip("filelock")
    limit = {"JAX_COMPILATION_CACHE_MAX_SIZE": "10000000"}
    finish(start(tmp_path, "a", "b", **limit))
    flip(100)(tmp_path / next(path.name for path in tmp_path.glob("jit_a-*-cache")))
    for hits in ({"b"}, {"a", "b"}):
        assert finish(start(tmp_path, "a", "b", **limit)) == ({"a": 14.0, "b": 20.0}, hits, "")


def test_an_entry_that_cannot_be_loaded_is_deleted(tmp_path):
    """It is intact, and of another JAX: otherwise its program would be compiled at each start."""

    def refuse(key):
        raise ValueError("compressed by zstd")

    cache = compile_cache.CheckedCache(types.SimpleNamespace(_path=tmp_path, eviction_enabled=False))
    cache.put("a", b"program")
    assert len(list(tmp_path.iterdir())) == 1
    assert compile_cache._read(refuse, types.SimpleNamespace(_cache=cache), "a") == (None, None)
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_directory_has_no_cache(monkeypatch):
    import jax

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    compile_cache.enable("~/cache")
    assert jax.config.jax_compilation_cache_dir == before


def test_a_jax_without_the_functions_keeps_its_own_cache(monkeypatch, tmp_path):
    import jax
    from jax._src import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delattr(compilation_cache, "get_file_cache")
    try:
        compile_cache.enable(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
