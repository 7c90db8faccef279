"""What the commands share: a config's experiment, and the ways of JAX that every run wants."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

CPU_DEVICES = 8  # at most, for each holds the data


def prepare_jax(divide: bool = False) -> None:
    """Keep compiled programs on disk, so that the second start of the same experiment compiles nothing.

    Call this before JAX creates devices.

    Args:
      divide: split the CPU into several devices of one core each, for independent work on each device: one small
        program leaves most cores idle.
    """
    import jax

    from deeplearn.parallel import compile_cache

    cores = min(os.cpu_count() or 1, CPU_DEVICES)
    if divide and cores > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # XLA has a thread pool of one thread per core. Several devices that wait for its work can exhaust it.
        os.environ.setdefault("NPROC", str(4 * cores))
        jax.config.update("jax_num_cpu_devices", cores)

    compile_cache.enable(os.environ.get("JAX_COMPILATION_CACHE_DIR") or "~/.cache/deeplearn/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


class Opened(NamedTuple):
    """A run that was made earlier.

    Fields:
      manifest: what its directory says of it.
      source: the files to execute.
      config: its config at the last start.
    """

    manifest: dict[str, Any]
    source: Any
    config: Any


def open_run(workdir: Path, accept: Sequence[str] = (), execute_copy: bool = False) -> Opened:
    """The run in a directory, its experiment executed, and its config with the types of the experiment's own.

    Args:
      workdir: the directory.
      accept, execute_copy: see deeplearn.identity.origin.
    """
    from deeplearn import experiment
    from deeplearn.identity.origin import origin
    from deeplearn.training import manifest

    written = manifest.read(workdir, "run")
    digests = manifest.current(written).get("source")
    source = origin(workdir, manifest.source_of(written), digests, accept, execute_copy)
    config = experiment.configure(source, manifest.config_of(written))
    return Opened(written, source, config)


def build(source, config):
    """The Experiment of a source, or of an experiment's path, with this config."""
    from deeplearn import experiment

    return experiment.load(source).build(config)


def build_again(place: str, source, config, identified: dict[str, Any]):
    """The Experiment of a source and a config, on the data and with the code that were identified before.

    Args:
      place: whose they are, for the message.
      source, config: as for `build`.
      identified: the identity.

    Raises:
      UserError: the data, the library's code or a version has changed since.
    """
    from deeplearn import identity
    from deeplearn.data import fingerprint
    from deeplearn.identity import versions

    experiment = build(source, config)
    now = {"data": fingerprint.fingerprint(experiment.data), "versions": versions.versions(source.libraries)}
    identity.check(place, {name: identified[name] for name in now}, now, acceptable=())
    return experiment


def identify(experiment, source):
    """The identity of an experiment; UserError if a process of this run has another one than process 0."""
    from deeplearn import identity
    from deeplearn.errors import UserError
    from deeplearn.parallel import differences, processes

    identified = identity.identify(experiment, source)
    everyone = [identity.fields(each) for each in processes.gathered(identified)]
    if line := differences.differences(dict(enumerate(everyone))):
        raise UserError(f"{line}; give all processes the same files, data and machines")
    return identified


def restore(workdir: Path, opened: Opened, which: str, mesh: str | None = None, accept: Sequence[str] = ()):
    """The Experiment of a run, its Program, and its checkpoint: "best" by validation, or "last".

    Where the best is damaged, the next best that is intact, or the last, which a warning says.

    Args:
      workdir: the run's directory.
      opened: the run.
      which: the checkpoint.
      mesh: of the devices that are here; None for the one that the run had.
      accept: sections of the identity that may differ from the run's.
    """
    from deeplearn import identity
    from deeplearn.errors import UserError, unknown
    from deeplearn.parallel import processes
    from deeplearn.training import checkpoints, manifest, restoring
    from deeplearn.training import program as programs

    if which not in ("best", "last"):
        raise unknown("checkpoint", which, ("best", "last"))
    config = opened.config.copy_and_resolve_references()
    config.mesh = config.mesh if mesh is None else mesh
    experiment = processes.in_turn(lambda: build(opened.source, config))
    there = manifest.current(opened.manifest)
    for line in identity.check(workdir, there, identify(experiment, opened.source), accept):
        logging.warning("accepted: %s", line)
    if "source" not in there:
        logging.warning("%s", manifest.unproven(workdir))
    program = programs.build(experiment)
    own, known = manifest.last_id(opened.manifest), manifest.ids(opened.manifest)
    manager = checkpoints.open(workdir / "checkpoints", mode="max", identity=own, accepted=known)
    best = checkpoints.restore_best(manager, program.abstract) if which == "best" else None
    restored = best or checkpoints.restore_latest(manager, program.abstract)
    if restored is None:
        raise UserError(f"{workdir} has no intact checkpoint; train it first, with the command in its manifest.json")
    kind, reason = restoring.described(restored)
    if which == "best" and reason:
        logging.warning("%s: this is its %s, of step %d: %s", workdir, kind, restored.step, reason)
    return experiment, program, restored


def local(path: str) -> Path:
    """The path of a study's directory; UserError for one in a bucket."""
    from deeplearn import files
    from deeplearn.errors import UserError

    if files.in_bucket(path):
        raise UserError(f"a comparison needs a local --workdir, not {path}; copy it afterwards: gcloud storage cp -r")
    return files.locate(path)


def make_workdir(path: str) -> Path:
    """The directory at `path`, made if need be."""
    from deeplearn.errors import UserError

    place = local(path)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the workdir {path}: {error.strerror}; choose another --workdir") from error
    return place


def config_path() -> str:
    """The experiment's file, as --config names it."""
    from absl import flags

    return flags.FLAGS["config"].config_filename


def command() -> list[str]:
    """The command line, in the form that everyone can repeat."""
    return ["python", "-m", "deeplearn", *sys.argv[1:]]


def describe(values: dict, classes=()) -> str:
    """Metrics a line each, accuracy by class behind its class."""
    lines = [f"  {name:20} {float(value):.4f}" for name, value in sorted(values.items()) if value.ndim == 0]
    if "class_accuracy" in values:
        each = values["class_accuracy"]
        lines += [f"  {f'accuracy, {name}':20} {float(value):.4f}" for name, value in zip(classes, each, strict=True)]
    return "\n".join(lines)


def show(paths: list[Path]) -> None:
    """Print the tables among the files of a comparison, and where all of them are."""
    for path in paths:
        if path.suffix == ".md":
            print(f"\n{path.read_text()}")
    print("to look at:", *paths, sep="\n  ")
