"""The processes of a run: where they meet, what they agree on, and that they end together.

A run has one process or many, each with devices of its own; of many, each runs the same command, line by line.
Process 0 writes, prints and decides; the others compute, and say nothing but errors.
"""

import contextlib
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from deeplearn.errors import UserError
from deeplearn.parallel import tokens
from deeplearn.parallel import wire as wires

Value = TypeVar("Value")

_wire: wires.Wire | None = None
_BY_HAND = "or give --coordinator, --processes and --process; --processes=1 for a run of its own"
_NEVER = 10**7  # seconds: the wire names a process that hangs, where JAX would abort with a C++ stack trace


class Place(NamedTuple):
    """One process among several.

    Fields:
      coordinator: HOST:PORT of process 0.
      count, rank: how many there are, and which this is.
      local_devices: the accelerators that are this process's where others share its machine; None: all.
    """

    coordinator: str
    count: int
    rank: int
    local_devices: list[int] | None = None


def is_main() -> bool:
    """Whether this process writes the logs and pictures: the first of the run, or the only one."""
    return jax.process_index() == 0


def found(timeout: float) -> Place | None:
    """This process's place in the cluster that its environment shows; None where there is no other process.

    Clusters are what `jax.distributed` detects: Cloud TPU, SLURM, Kubernetes (an indexed Job or a JobSet), Open MPI.
    Elsewhere this looks at environment variables only.

    Raises:
      UserError: the environment shows a cluster, and it cannot be told who is in it.
    """
    from jax._src.clusters import ClusterEnv  # has no public name but `initialize`, which takes no for a fault

    pod, indexed = "KUBERNETES_SERVICE_HOST" in os.environ, "JOB_COMPLETION_INDEX" in os.environ
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pod without the package: said below where it matters
            place = ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, int(timeout))
    except Exception as error:  # whatever a metadata server or a cluster's interface makes of it
        if pod and not indexed:
            return None  # a pod of no job
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot tell the other processes of this cluster ({cause}); {_BY_HAND}") from error
    if place[1] is None and pod and indexed:
        raise UserError(f"this pod is one of a job; to find the others, pip install kubernetes; {_BY_HAND}")
    return Place(*place) if (place[1] or 1) > 1 else None


@contextlib.contextmanager
def together(
    place: Place | None,
    fields: Mapping[str, Any],
    timeout: float,
    workdir: str | os.PathLike | None = None,
    silence: float = wires.SILENCE,
) -> Iterator[None]:
    """Run the block as one of several processes that begin and end together; without a place, as it stands.

    Must be entered before JAX has devices. If a process is lost, all others end within seconds and name it; if one
    hangs, they do so after `silence`. An error in the block ends all processes, and is printed here: nothing after the
    block is executed then.

    Args:
      place: from `found`, or the flags.
      fields: by name, what must be alike on every process, as JSON can hold it.
      timeout: seconds to wait for the others.
      workdir: where the token may be by which the processes know each other, see `parallel.tokens`.
      silence: seconds without a sign of life after which a process counts as hung.

    Raises:
      UserError: a process did not come, or was started differently; the same on every process.
    """
    global _wire
    if place is None:
        yield
        return
    try:
        _wire = wires.meet(place.coordinator, place.rank, place.count, fields, timeout, workdir, silence)
    except UserError as error:
        raise UserError(f"process {place.rank}: {error}" if place.rank else str(error)) from error
    try:
        # It would take SIGTERM for itself; the loop has a handler, and `gathered` to tell the others.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.rank,
            _own_devices(place, wires.gathered(_wire, socket.gethostname())),
            cluster_detection_method="deactivate",
            coordinator_bind_address=_bind_address(place.coordinator),
            heartbeat_timeout_seconds=_NEVER,
            initialization_timeout=int(timeout) + 1,
            shutdown_timeout_seconds=30,
        )
        yield
        wires.close(_wire)
    except UserError as error:
        wires.end(_wire, 2, str(error))
    except KeyboardInterrupt:
        wires.end(_wire, 130, "interrupted")
    except BaseException as error:
        wires.settle(_wire)  # a lost or silent process makes collectives fail, and the wire says so
        traceback.print_exc()
        wires.end(_wire, 1, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _bind_address(coordinator: str) -> str | None:
    """Where JAX's service is to listen: on loopback only if the coordinator is there; None leaves it to JAX.

    >>> _bind_address("localhost:80"), _bind_address("10.0.0.2:80")
    ('127.0.0.1:80', None)
    """
    host, _, port = coordinator.rpartition(":")
    if not tokens.is_loopback(host.strip("[]")):
        return None
    return f"127.0.0.1:{port}" if host == "localhost" else coordinator


def _own_devices(place: Place, machines: list[str]) -> list[int] | None:
    """The accelerators for a process, by the names of all processes' machines: of a machine it has to itself, all.

    JAX's detection takes one for each process of SLURM and of Open MPI, the first where there is one process a machine.

    >>> place = Place("a:1", 2, 1, local_devices=[0])
    >>> _own_devices(place, ["a", "b"]), _own_devices(place, ["b", "b"])
    (None, [0])
    """
    return place.local_devices if machines.count(machines[place.rank]) > 1 else None


def gathered(value: Any) -> list[Any]:
    """What every process says, in their order; all must ask, and each waits for the slowest.

    value: what JSON can hold. For the decisions of the host, such as whether one of them is to stop; costs nothing in
    a single process, and a message to process 0 and back in several.

    >>> gathered(3)
    [3]
    """
    if _wire is None:
        return [value]
    return wires.gathered(_wire, value)


def decided(value: Value) -> Value:
    """What process 0 says.

    >>> decided("go")
    'go'
    """
    return value if _wire is None else wires.gathered(_wire, None if _wire.rank else value)[0]


def in_turn(function: Callable[[], Value]) -> Value:
    """Call `function` on process 0, and then on the others, which find the files that it has made."""
    if _wire is None or _wire.rank == 0:
        value = function()
        gathered(None)
        return value
    gathered(None)
    return function()


def fetch(tree):
    """Whole arrays on the host, on every process, with the parts that other processes hold."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
