"""The wire between a run's processes: who is there, what each says, and who is lost.

TCP with process 0 in the middle, a JSON object on each line. It stands before JAX does, so that a process that does not
come, or was started differently, is named in one line; and it stays, because a kernel closes the sockets of a process
however that ends. JAX's own service would need minutes to miss one, and end the others in many lines without its name.
"""

import contextlib
import dataclasses
import json
import os
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from deeplearn.errors import UserError

GRACE = 5.0  # seconds in which others come to the same end by themselves, and say so in their own words
HELLO = 5.0  # seconds for a stranger to say who it is
GO_ON = "the same command on every process goes on from the last checkpoint"


@dataclasses.dataclass
class Wire:
    """The wire as one process has it, open.

    Fields:
      rank, count: this process, and how many there are.
      peers: the sockets: of process 0 to all others, of every other to process 0.
      said: what each of them said, and nobody asked for yet.
      ending: set once the main thread is on its way out: from then on the end of another process is no news.
      readers: the threads that listen, which end when their peer has hung up.
    """

    rank: int
    count: int
    peers: dict[int, socket.socket]
    said: dict[int, queue.Queue]
    ending: threading.Event = dataclasses.field(default_factory=threading.Event)
    exiting: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    readers: list[threading.Thread] = dataclasses.field(default_factory=list)


def meet(coordinator: str, rank: int, count: int, fields: Mapping[str, Any], timeout: float) -> Wire:
    """Wait until all processes are there and have the same `fields`; then open the wire between them.

    Args:
      coordinator: HOST:PORT at which process 0 listens, for this alone: the port is free again afterwards.
      rank: this process, from 0.
      count: how many there are.
      fields: by name, what JSON can hold and must be alike.
      timeout: seconds.

    Raises:
      UserError: names the processes that did not come, or those that differ and in what; the same on every process.
    """
    host, _, port = coordinator.rpartition(":")
    fields = json.loads(json.dumps({"--processes": count, **fields}))
    if rank:
        peers = {0: _arrive(host.strip("[]"), int(port), rank, fields, timeout)}
    else:
        peers = _await_all(int(port), count, fields, timeout)
    wire = Wire(rank, count, peers, {peer: queue.Queue() for peer in peers})
    for peer in peers:
        wire.readers.append(threading.Thread(target=_listen, args=(wire, peer), daemon=True, name=f"process {peer}"))
    for reader in wire.readers:
        reader.start()
    return wire


def gathered(wire: Wire, value: Any) -> list[Any]:
    """What every process says, in their order; all of them must ask, and each waits for the slowest.

    value: what JSON can hold.
    """
    if wire.rank:
        _send(wire.peers[0], {"say": value})
        return wire.said[0].get()
    values = json.loads(json.dumps([value, *(wire.said[peer].get() for peer in sorted(wire.peers))]))
    for peer in wire.peers.values():
        _send(peer, {"say": values})
    return values


def end(wire: Wire, status: int, line: str) -> None:
    """Tell the others that this process ends with an error, print it, and end: they end too.

    Does not return: what JAX does at a usual exit is to wait for processes that will not come.
    """
    wire.ending.set()
    wire.exiting.acquire()
    _leave(wire, {"ended": [status, f"process {wire.rank} ended: {line}"]}, status, line)


def close(wire: Wire) -> None:
    """Wait for all processes to come here; from then on their ends are no news."""
    gathered(wire, None)
    wire.ending.set()


def named(ranks: Iterable[int]) -> str:
    """The processes of these ranks in words.

    >>> named([1]), named([1, 2, 5])
    ('process 1', 'processes 1, 2 and 5')
    """
    *others, last = map(str, sorted(ranks))
    return f"processes {', '.join(others)} and {last}" if others else f"process {last}"


def differences(fields: Mapping[int, Mapping[str, Any]]) -> str | None:
    """How some processes differ from process 0, if any does, in a line that shows the first three fields.

    >>> differences({0: {"lr": 0.1, "seed": 0}, 1: {"lr": 0.1, "seed": 0}, 2: {"lr": 0.3, "seed": 0}})
    'process 2 was not started as process 0 was: lr is 0.1 on process 0 and 0.3 on process 2'
    """
    mine, ranks, first = fields[0], [], {}
    for rank, theirs in sorted(fields.items()):
        names = [name for name in mine | theirs if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)]
        ranks += [rank] * bool(names)
        first = dict.fromkeys(names, rank) | first
    if not ranks:
        return None
    shown = [
        f"{name} is {mine.get(name, _ABSENT)} on process 0 and {fields[rank].get(name, _ABSENT)} on process {rank}"
        for name, rank in first.items()
    ]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    were = "were" if len(ranks) > 1 else "was"
    return f"{named(ranks)} {were} not started as process 0 was: {', '.join(shown[:3])}{more}"


_ABSENT = "absent"


def _await_all(port: int, count: int, fields: dict, timeout: float) -> dict[int, socket.socket]:
    """Process 0's side of `meet`."""
    deadline = time.monotonic() + timeout
    peers, told = {}, {0: fields}

    def refuse(line):
        for peer in peers.values():
            _send(peer, {"refused": line})
        raise UserError(line)

    try:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(
            ("", port), family=family, backlog=count, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port}: {os.strerror(error.errno)}; choose another --coordinator"
        ) from error
    with server:
        while missing := set(range(1, count)) - peers.keys():
            try:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                peer, _ = server.accept()
            except TimeoutError:
                refuse(
                    f"{named(missing)} of {count} did not arrive within {timeout:g} s; see what they say if they run"
                )
            hello = _receive(peer, HELLO)
            if not isinstance(hello.get("process"), int) or not isinstance(hello.get("fields"), dict):
                peer.close()  # something else that knocks at open ports
                continue
            rank = hello["process"]
            if rank in peers and not _hung_up(peers[rank]):
                _send(peer, {"refused": f"there is a process {rank} already; each needs a --process of its own"})
                peer.close()
                continue
            peers[rank], told[rank] = peer, hello["fields"]
            if rank >= count:
                break  # it counts other processes, and that is a difference
    if line := differences(told):
        refuse(f"{line}; start all with the same command and files")
    for peer in peers.values():
        _send(peer, {"go": True})
        _keep_alive(peer)
    return peers


def _arrive(host: str, port: int, rank: int, fields: dict, timeout: float) -> socket.socket:
    """Another process's side of `meet`."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            peer = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1))
            if peer.getsockname() != peer.getpeername():
                break
            peer.close()  # with a port of this very machine, where nobody listens, a kernel may connect it to itself
        except OSError as error:  # not there yet, or the name is not known yet
            if time.monotonic() > deadline:
                cause = error.strerror or error
                raise UserError(
                    f"process 0 did not arrive at {host}:{port} within {timeout:g} s ({cause}); "
                    "see what it says, if it runs, or correct --coordinator"
                ) from error
            time.sleep(0.1)
    _send(peer, {"process": rank, "fields": fields})
    answer = _receive(peer, timeout + HELLO)
    if "go" not in answer:
        raise UserError(answer.get("refused", f"process 0 at {host}:{port} hung up; see what it says"))
    _keep_alive(peer)
    return peer


def _listen(wire: Wire, peer: int) -> None:
    """Take what a peer says until it hangs up; if it ends otherwise than all do, end this process too."""
    word = {"lost": f"process {peer} is lost (killed, or its machine is gone); {GO_ON}"}
    with contextlib.suppress(OSError, ValueError), wire.peers[peer].makefile("r") as lines:
        for message in map(json.loads, lines):
            if "say" not in message:
                word = message
                break
            wire.said[peer].put(message["say"])
    status, line = word["ended"] if "ended" in word else (1, word["lost"])
    if "ended" in word:
        wire.ending.wait(GRACE)
    if wire.exiting.acquire(blocking=False):
        if not wire.ending.is_set():
            _leave(wire, word, status, line)
        wire.exiting.release()
    with contextlib.suppress(OSError):
        while wire.peers[peer].recv(4096):
            pass


def _leave(wire: Wire, word: dict, status: int, line: str) -> None:
    """Pass the word on, print the line, and end. Process 0 ends last, because JAX's service ends with it."""
    for peer in wire.peers.values():
        _send(peer, word)
    who = f"process {wire.rank}: " if wire.rank else ""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"{chr(10) * sys.stderr.isatty()}error: {who}{line}", file=sys.stderr, flush=True)
    if not wire.rank:
        deadline = time.monotonic() + 2 * GRACE
        for reader in wire.readers:
            if reader is not threading.current_thread():
                reader.join(max(deadline - time.monotonic(), 0))
    os._exit(status)


def _send(peer: socket.socket, message: dict) -> None:
    with contextlib.suppress(OSError):  # whoever listens to it learns that it is gone
        peer.sendall(json.dumps(message).encode() + b"\n")


def _receive(peer: socket.socket, timeout: float) -> dict:
    """The first message; an empty one if there is none, or not a message."""
    deadline, text = time.monotonic() + timeout, b""
    try:
        while not text.endswith(b"\n"):
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
            waiting = peer.recv(65536, socket.MSG_PEEK)
            if not waiting:
                return {}
            text += peer.recv(waiting.find(b"\n") + 1 or len(waiting))  # what comes after it is for `_listen`
        message = json.loads(text)
        return message if isinstance(message, dict) else {}
    except (OSError, ValueError):
        return {}
    finally:
        peer.settimeout(None)


def _hung_up(peer: socket.socket) -> bool:
    readable, _, _ = select.select([peer], [], [], 0)
    return bool(readable) and not peer.recv(1, socket.MSG_PEEK)


def _keep_alive(peer: socket.socket) -> None:
    """Have the kernel ask now and then: a machine without power closes no sockets."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}.items():
        if hasattr(socket, name):  # Linux
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
