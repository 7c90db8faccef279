"""The flags of a run in several processes, and what the commands do with them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging

COORDINATOR = flags.DEFINE_string("coordinator", None, "of several processes: HOST:PORT of process 0")
PROCESSES = flags.DEFINE_integer("processes", None, "how many; 1: this one alone, whatever cluster it is in")
PROCESS = flags.DEFINE_integer("process", None, "which of them this is, from 0")
TIMEOUT = flags.DEFINE_float("process_timeout", 300.0, "seconds to wait until all of them are there", lower_bound=1)
SILENCE = flags.DEFINE_float(
    "process_silence",
    60.0,
    "seconds without a sign of life after which a process counts as hung: the others name it and exit",
    lower_bound=1,
)


def place():
    """This process's Place by the flags, else by its cluster; None where it is alone."""
    from deeplearn.errors import UserError
    from deeplearn.parallel import processes

    address, count, rank = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if count == 1 and not rank:
        return None
    given = {"coordinator": address, "processes": count, "process": rank}
    absent = [name for name, value in given.items() if value is None]
    if len(absent) == len(given):
        return processes.found(TIMEOUT.value)
    if absent:
        raise UserError(f"--{absent[0]} is missing: several processes need --coordinator, --processes and --process")
    if not 0 <= rank < count:
        raise UserError(f"--process={rank} is none of --processes={count}: they are numbered from 0 to {count - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={address} is not of the form HOST:PORT, as in 10.0.0.2:8476")
    return processes.Place(address, count, rank)


@contextlib.contextmanager
def joined(fields: dict[str, Any], source, workdir: str) -> Iterator[None]:
    """Run the block on every process of the run, all started with the same `fields`, source files and versions.

    Args:
      fields: by name, what must be alike on all processes.
      source: the files of the experiment, see deeplearn.identity.source.
      workdir: the run's, where the token may be by which the processes know each other.
    """
    from deeplearn.identity import source as sources
    from deeplearn.identity import versions
    from deeplearn.parallel import processes

    here = place()
    if here is None:
        yield
        return
    alike = {
        **fields,
        "--process_silence": SILENCE.value,
        **{f"source.{name}": digest for name, digest in sources.digests(source).items()},
        **{f"versions.{name}": version for name, version in versions.versions(source.libraries).items()},
    }
    with processes.together(here, alike, TIMEOUT.value, workdir, SILENCE.value):
        if not processes.is_main():
            logging.set_verbosity(logging.ERROR)
        yield


def check_shared(workdir: Path) -> None:
    """Refuse a workdir that is not, on every process, the directory in which process 0 has just written a manifest."""
    from deeplearn.errors import UserError
    from deeplearn.parallel import differences, processes
    from deeplearn.training import manifest

    processes.gathered(None)  # before that process 0 may still be writing
    here = manifest.read(workdir) if manifest.exists(workdir) else None
    shared = processes.gathered(here == processes.decided(here))
    if others := [rank for rank, same in enumerate(shared) if not same]:
        raise UserError(
            f"{workdir} is another directory on {differences.named(others)} than on process 0; "
            "choose a --workdir that all of them share"
        )


def alone(command: str) -> None:
    """Refuse to be one of several processes."""
    from deeplearn.errors import UserError

    if place() is not None:
        raise UserError(f"{command} runs in one process, which takes all devices of its machine; add --processes=1")
