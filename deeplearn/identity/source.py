"""The source files of an experiment: which they are, what they contain, and a copy of them in the run's directory.

An experiment is one file, and the modules that it imports from outside the installed packages. The imports are read
from the syntax tree, so that nothing is executed to find them; a module that is imported by a computed name is missed.

Each file is read once. What is digested, copied and executed are the same bytes, also if the file changes while a run
starts or a study trains.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

from deeplearn.errors import UserError
from deeplearn.files import locate, replacing, writing
from deeplearn.identity import imports

FOLDER = "source"
LIBRARY = ("deeplearn", "kernels")  # their code is part of the versions
_NOT_PYTHON = (SyntaxError, ValueError, MemoryError, RecursionError)  # the last two of what is nested too deeply
INSTALLED = ("site-packages", "dist-packages")


class Source(NamedTuple):
    """The files of an experiment.

    Fields:
      experiment: the file that has get_config() and build().
      modules: those that it imports, directly or not, by their path below the folder that they are imported from, such
        as {"experiments/_gpt.py": Path("/home/me/deeplearn/experiments/_gpt.py")}.
      libraries: the installed packages that these files import, by the name of the import.
      contents: what these files contained when they were read; empty if they were not read yet.
    """

    experiment: Path
    modules: Mapping[str, Path] = {}
    libraries: tuple[str, ...] = ()
    contents: Mapping[Path, bytes] = {}


def collect(experiment: Path) -> Source:
    """The Source of an experiment file, its imports resolved as this process would import them."""
    experiment = experiment.absolute()
    modules, libraries, contents, waiting = {}, set(), {}, [(experiment, "")]
    while waiting:
        file, package = waiting.pop()
        contents[file] = _read(file)
        for name in _imports(file, contents[file], package):
            top = name.partition(".")[0]
            if top in LIBRARY or top in sys.stdlib_module_names:
                continue
            for spec in _specs(name):
                if not spec.origin or not spec.has_location:
                    continue  # a namespace package, or a module built into Python
                path = Path(spec.origin).absolute()
                if top != "experiments" and set(INSTALLED) & set(path.parts):
                    libraries.add(top)
                elif path.suffix == ".py":
                    relative = _relative(spec)
                    if relative not in modules:
                        modules[relative] = path
                        waiting.append((path, spec.name if spec.submodule_search_locations else spec.parent))
    return Source(experiment, dict(sorted(modules.items())), tuple(sorted(libraries)), contents)


def read(source: Source) -> Source:
    """The same with the contents of its files, which are read now unless they were read before.

    Raises:
      UserError: a file cannot be read.
    """
    if source.contents:
        return source
    return source._replace(contents={path: _read(path) for path in (source.experiment, *source.modules.values())})


def as_json(source: Source) -> dict[str, Any]:
    """Where the files are and which packages they import, for a manifest; `from_json` reads it."""
    return {
        "experiment": str(source.experiment),
        "modules": {name: str(path) for name, path in source.modules.items()},
        "libraries": list(source.libraries),
    }


def from_json(fields: Mapping[str, Any]) -> Source:
    """The Source that `as_json` wrote, not yet read; manifests of older versions have "experiment" alone."""
    modules = {name: Path(path) for name, path in fields.get("modules", {}).items()}
    return Source(Path(fields["experiment"]), modules, tuple(fields.get("libraries", ())))


def digests(source: Source) -> dict[str, str]:
    """The first 16 hexadecimal digits of each file's SHA-256: of the experiment, and of its modules by their path."""
    named = {"experiment": source.experiment, **source.modules}
    contents = read(source).contents
    return {name: hashlib.sha256(contents[path]).hexdigest()[:16] for name, path in named.items()}


def folder(digests: Mapping[str, str]) -> str:
    """The path below a run's directory of the copy of the files that have these digests."""
    together = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:12]
    return f"{FOLDER}/{together}"


def keep(source: Source, workdir: str | os.PathLike) -> None:
    """Copy the files into `workdir`, below `folder`; of a copy that is there, only damaged files are replaced.

    Raises:
      UserError: a file cannot be written, or the copy that is there cannot be read.
    """
    source = read(source)
    place = locate(workdir) / folder(digests(source))
    for path, copy in zip((source.experiment, *source.modules.values()), _copies(source, place), strict=True):
        if not copy.is_file() or _read(copy) != source.contents[path]:
            with writing(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as temporary:
                temporary.write_bytes(source.contents[path])


def stored(source: Source, digests: Mapping[str, str], workdir: str | os.PathLike) -> Source:
    """The Source that `keep` copied into `workdir`; of `source` the names alone matter.

    Raises:
      UserError: a file of the copy is missing or was changed.
    """
    place = locate(workdir) / folder(digests)
    experiment, *modules = _copies(source, place)
    copy = Source(experiment, dict(zip(source.modules, modules, strict=True)), source.libraries)
    if changed := differing(copy, digests):
        raise UserError(f"{place} is not what the run was made with: {', '.join(changed)} is missing or was changed")
    return read(copy)


def differing(source: Source, expected: Mapping[str, str]) -> list[str]:
    """The names of the files that now are missing or do not have the expected digest."""
    named = {"experiment": source.experiment, **source.modules}
    actual = {name: digests(Source(path))["experiment"] for name, path in named.items() if path.is_file()}
    return [name for name in {**expected, **named} if actual.get(name) != expected.get(name)]


def inside(source: Source, workdir: str | os.PathLike) -> bool:
    """Whether a file of the source lies in `workdir`: it may be somebody else's."""
    files = (source.experiment, *source.modules.values())
    return any(file.resolve().is_relative_to(Path(workdir).resolve()) for file in files)


def execute(source: Source) -> ModuleType:
    """The module of the experiment file; its imports get the modules of the source, wherever Python would look.

    Raises:
      UserError: the file cannot be read, or is not Python.
    """
    source = read(source)
    imports.provide({name: (str(path), source.contents[path]) for name, path in source.modules.items()})
    name = f"{source.experiment.parent.name}.{source.experiment.stem}"
    other = sys.modules.get(name)
    if getattr(other, "__file__", str(source.experiment)) != str(source.experiment):
        name += "@experiment"  # it may import the module of that name, such as deeplearn.config
        other = sys.modules.get(name)
    module = ModuleType(name)
    module.__file__ = str(source.experiment)
    try:
        code = compile(source.contents[source.experiment], source.experiment, "exec")
    except _NOT_PYTHON as error:
        raise _not_python(source.experiment, error) from error
    sys.modules[name] = module  # where its classes look for it while they are made
    try:
        exec(code, module.__dict__)
    finally:
        if other is None:
            del sys.modules[name]
        else:
            sys.modules[name] = other
    return module


def _copies(source: Source, place: Path) -> list[Path]:
    return [place / source.experiment.name, *(place / "modules" / relative for relative in source.modules)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _not_python(file: Path, error: BaseException) -> UserError:
    return UserError(f"{file} is not Python: {error or 'it is nested too deeply'}")


def _imports(file: Path, content: bytes, package: str) -> Iterator[str]:
    """The absolute names that the imports of a file may mean; `from a import b` means a, and perhaps a module a.b."""
    try:
        tree = ast.parse(content, str(file))
    except _NOT_PYTHON as error:
        raise _not_python(file, error) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*filter(None, parents), *filter(None, [base])])
            yield from filter(None, (base, *(f"{base}.{alias.name}" for alias in node.names)))


def _specs(name: str) -> Iterator[ModuleSpec]:
    """The specs of a module's packages and of the module, as far as they exist; nothing is imported."""
    path = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        full = ".".join(parts[:end])
        finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec") and finder is not imports.FINDER)
        spec = next((spec for finder in finders if (spec := finder.find_spec(full, path, None))), None)
        if spec is None:
            return
        yield spec
        path = spec.submodule_search_locations
        if path is None:
            return


def _relative(spec: ModuleSpec) -> str:
    """The path of a module's file below the folder that it is imported from."""
    depth = spec.name.count(".") + (2 if Path(spec.origin).name == "__init__.py" else 1)
    return PurePosixPath(*Path(spec.origin).parts[-depth:]).as_posix()
