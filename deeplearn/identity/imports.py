"""Imports modules from bytes that were read before, not from the files as they are now."""

import importlib.abc
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location


class _Loader(importlib.abc.SourceLoader):
    """Executes these bytes; uses no cached bytecode and writes none."""

    def __init__(self, path: str, content: bytes):
        self.path, self.content = path, content

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.content


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules in {path below the folder that they are imported from: (their file, its content)}."""

    def __init__(self):
        self.modules: dict[str, tuple[str, bytes]] = {}

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        base = fullname.replace(".", "/")
        for relative in (f"{base}/__init__.py", f"{base}.py"):
            if relative in self.modules:
                loader = _Loader(*self.modules[relative])
                return spec_from_file_location(fullname, loader.path, loader=loader)
        inside = [relative for relative in self.modules if relative.startswith(f"{base}/")]
        if not inside or PathFinder.find_spec(fullname, path):
            return None
        spec = ModuleSpec(fullname, None, is_package=True)  # a namespace package, which has no file
        spec.submodule_search_locations = [self.modules[inside[0]][0][: len(base) - len(inside[0])]]
        return spec


FINDER = _Finder()


def provide(modules: Mapping[str, tuple[str, bytes]]) -> None:
    """Make the next imports of these modules execute these contents.

    It stays so, because a module may be imported later, within a function.

    Args:
      modules: {path below the folder that they are imported from: (their file, its content)}, such as
        {"experiments/_gpt.py": ("/home/me/deeplearn/experiments/_gpt.py", b"...")}.
    """
    for relative in [old for old in FINDER.modules if old not in modules and _hides(old, modules)]:
        del FINDER.modules[relative]
        if _name(relative) in sys.modules:
            _forget(_name(relative))
    FINDER.modules.update(modules)
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    loaded = {_name(relative): content for relative, content in modules.items() if _name(relative) in sys.modules}
    if any(not _is_loaded(name, *content) for name, content in loaded.items()):
        for name in loaded:  # all of them: one may have imported another
            _forget(name)


def _name(relative: str) -> str:
    return relative.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _hides(old: str, modules: Mapping[str, tuple[str, bytes]]) -> bool:
    """Whether a module of another experiment has the name of a package of these modules, or lies in one of them.

    >>> [_hides(old, {"mine/part.py": ("", b"")}) for old in ("mine.py", "mine/__init__.py", "mine/other.py")]
    [True, True, False]
    >>> _hides("mine/part.py", {"mine.py": ("", b"")})
    True
    """
    name, packages = _name(old), {_name(new) for new in modules if new.endswith("__init__.py")}
    return any(
        new.startswith(f"{name}.") or (name.startswith(f"{new}.") and new not in packages)
        for new in map(_name, modules)
    )


def _is_loaded(name: str, path: str, content: bytes) -> bool:
    loader = getattr(sys.modules[name], "__loader__", None)
    return isinstance(loader, _Loader) and (loader.path, loader.content) == (path, content)


def _forget(name: str) -> None:
    """Make the next import of a module execute it again."""
    del sys.modules[name]
    package, _, last = name.rpartition(".")
    if package in sys.modules and hasattr(sys.modules[package], last):
        delattr(sys.modules[package], last)
