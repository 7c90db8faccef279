"""The wire between a run's processes: who is there, what each says, and who is lost or silent.

TCP with process 0 in the middle. It is there before JAX is, so that a process that does not arrive, or was started
differently, is named in one line. It stays open during the run: a kernel closes the sockets of a process however that
ends, and a process that is stopped sends no heartbeats. JAX's own service would need minutes to miss a process, and
would end the others with a C++ stack trace and without its name.

The network is assumed to be private. A stranger who can reach process 0's port learns nothing and cannot join, and
frames cannot be changed on the way (see `frames`), but they are not encrypted. JAX's own service, which listens at the
same port afterwards, and the collectives (gloo, NCCL, TPU) are neither authenticated nor encrypted: no port of a run's
machines may be reachable by anybody who is not trusted.
"""

import contextlib
import dataclasses
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from deeplearn.parallel import frames, meeting, messages, tokens
from deeplearn.parallel.differences import named

GRACE = 5.0  # seconds in which others come to the same end by themselves, and say so in their own words
SILENCE = 60.0  # seconds without a sign of life after which a process counts as hung
UNASKED = 8  # messages that may wait to be asked for; at most one does, as each is answered before the next is sent
GO_ON = "the same command on every process goes on from the last checkpoint"


@dataclasses.dataclass
class Wire:
    """The wire as one process has it, open.

    Fields:
      rank, count: this process, and how many there are.
      peers: the channels: of process 0 to all others, of every other to process 0.
      silence: seconds without any message after which a peer counts as hung.
      said: what each of them said, and nobody asked for yet.
      heard: when each of them was last heard, by time.monotonic().
      suspects: the processes that this one has not heard for a while.
      told: those that process 0 has not heard for a while.
      ending: set once the main thread is on its way out: from then on the end of another process is no news.
      exiting: held by the thread that ends this process.
      readers: the threads that listen, which end when their peer has hung up.
    """

    rank: int
    count: int
    peers: dict[int, frames.Channel]
    silence: float = SILENCE
    said: dict[int, queue.Queue] = dataclasses.field(default_factory=dict)
    heard: dict[int, float] = dataclasses.field(default_factory=dict)
    suspects: list[int] = dataclasses.field(default_factory=list)
    told: list[int] = dataclasses.field(default_factory=list)
    ending: threading.Event = dataclasses.field(default_factory=threading.Event)
    exiting: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    readers: dict[int, threading.Thread] = dataclasses.field(default_factory=dict)


def meet(
    coordinator: str,
    rank: int,
    count: int,
    fields: Mapping[str, Any],
    timeout: float,
    workdir: str | os.PathLike | None = None,
    silence: float = SILENCE,
) -> Wire:
    """Wait until all processes are there and have the same `fields`; then open the wire between them.

    Args:
      coordinator: HOST:PORT at which process 0 listens, for this alone: the port is free again afterwards.
      rank: this process, from 0.
      count: how many there are.
      fields: by name, what JSON can hold and must be alike. Nobody sees it who does not know the token (see `tokens`).
      timeout: seconds.
      workdir: where the file with the token is, which process 0 creates if it is missing.
      silence: seconds without a sign of life after which a process counts as hung; the same on all.

    Raises:
      UserError: names the processes that did not come, or those that differ and in what; the same on every process.
    """
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)
    fields = json.loads(json.dumps({"--processes": count, **fields}))
    if rank:
        peers = {0: meeting.arrive(address, rank, fields, timeout, workdir)}
    else:
        with tokens.provided(workdir):
            peers = meeting.await_all(address, count, fields, timeout, tokens.find(address[0], workdir))
    return opened(rank, count, peers, silence)


def opened(rank: int, count: int, peers: dict[int, frames.Channel], silence: float = SILENCE) -> Wire:
    """The wire over these channels, with its threads: one that listens to each peer, and one for heartbeats.

    Args:
      rank: of this process.
      count: of the processes.
      peers: a channel for each rank; process 0 has all others, the others have process 0.
      silence: seconds without a message after which a peer counts as hung.
    """
    now = time.monotonic()
    wire = Wire(rank, count, peers, silence)
    wire.said = {peer: queue.Queue(UNASKED) for peer in peers}
    wire.heard = dict.fromkeys(peers, now)
    for peer in peers:
        wire.readers[peer] = threading.Thread(target=_listen, args=(wire, peer), daemon=True, name=f"process {peer}")
    for thread in (*wire.readers.values(), threading.Thread(target=_beat, args=(wire,), daemon=True, name="heartbeat")):
        thread.start()
    return wire


def gathered(wire: Wire, value: Any) -> list[Any]:
    """What every process says, in their order; all of them must ask, and each waits for the slowest.

    value: what JSON can hold.
    """
    if wire.rank:
        frames.send(wire.peers[0], {"say": value})
        return wire.said[0].get()
    values = json.loads(json.dumps([value, *(wire.said[peer].get() for peer in sorted(wire.peers))]))
    for peer in wire.peers.values():
        frames.send(peer, {"say": values})
    return values


def end(wire: Wire, status: int, line: str) -> None:
    """Tell the others that this process ends with an error, print it, and end: they end too.

    Does not return: what JAX does at a usual exit is to wait for processes that will not come.
    """
    wire.ending.set()
    wire.exiting.acquire()
    _leave(wire, messages.end(status, f"process {wire.rank} ended: {line}", patient=True), line)


def settle(wire: Wire) -> None:
    """Wait as long as another process may turn out to be the cause of this one's error; it then ends this one.

    A collective fails when a process is lost, and after a while when one is silent.
    """
    time.sleep(GRACE)
    while wire.suspects or wire.told:
        time.sleep(0.1)


def close(wire: Wire) -> None:
    """Wait for all processes to come here; from then on their ends are no news."""
    gathered(wire, None)
    wire.ending.set()


def quiet(heard: Mapping[int, float], now: float, seconds: float) -> list[int]:
    """The processes that were last heard more than so many seconds ago.

    >>> quiet({1: 10.0, 2: 2.0}, now=12.0, seconds=5.0)
    [2]
    """
    return sorted(rank for rank, when in heard.items() if now - when > seconds)


def excused(heard: Mapping[int, float], last: float, now: float, most: float) -> dict[int, float]:
    """When processes were last heard that are to be given all of their time again; none if this one has run all along.

    Args:
      heard: when each process was last heard.
      last, now: two looks at the clock, one after the other.
      most: seconds between the looks above which this process itself was stopped.

    >>> excused({1: 3.0}, last=4.0, now=5.0, most=30.0), excused({1: 3.0}, last=4.0, now=99.0, most=30.0)
    ({}, {1: 99.0})
    """
    return dict.fromkeys(heard, now) if now - last > most else {}


def _beat(wire: Wire) -> None:
    """Send a heartbeat to every peer every few seconds; end this process when one of them is silent for too long.

    This thread never waits for a peer. When it has not run for long, this process was itself stopped, as by the
    suspension of a whole job, and its peers with it perhaps: they get all of their time again.
    """
    period = min(wire.silence / 6, 5.0)
    last = time.monotonic()
    while not wire.ending.wait(period):
        now = time.monotonic()
        wire.heard.update(excused(wire.heard, last, now, wire.silence / 2))
        last = now
        wire.suspects = quiet(wire.heard, now, 3 * period)
        if silent := quiet(wire.heard, now, wire.silence):
            _end_for(wire, messages.end(2, _silent(silent, wire.silence)), silent)
        for peer in wire.peers.values():
            frames.send_now(peer, {"beat": wire.suspects})


def _silent(ranks: list[int], seconds: float) -> str:
    have, it, machine = (
        ("have", "them", "their machines hang") if len(ranks) > 1 else ("has", "it", "its machine hangs")
    )
    return f"{named(ranks)} {have} been silent for {seconds:g} s (stopped, or {machine}); kill {it}, then {GO_ON}"


def _listen(wire: Wire, peer: int) -> None:
    """Take what a peer says until it hangs up; if it ends otherwise than all do, end this process too."""
    lost = messages.end(1, f"process {peer} is lost (killed, or its machine is gone); {GO_ON}")
    try:
        word = _heard(wire, peer)
    except (OSError, EOFError):
        word = lost
    except frames.Malformed as error:
        word = messages.end(1, f"process {peer} sent what no process of a run sends: {error}; {GO_ON}")
    except Exception:  # a fault of ours, which must not leave a run without anybody who listens
        traceback.print_exc()
        word = messages.end(1, f"listening to process {peer} failed; {GO_ON}")
    if word["patient"]:
        wire.ending.wait(GRACE)
    _end_for(wire, word)
    with contextlib.suppress(OSError):
        while wire.peers[peer].connection.recv(4096):
            pass


def _heard(wire: Wire, peer: int) -> dict[str, Any]:
    """Sort a peer's messages until its last one, and return that."""
    while True:
        kind, value = messages.checked(frames.receive(wire.peers[peer]), peer, wire.count)
        wire.heard[peer] = time.monotonic()
        if kind == "end":
            return value
        if kind == "beat":
            wire.told = value
            continue
        try:
            wire.said[peer].put_nowait(value)
        except queue.Full:
            raise frames.Malformed(f"more than {UNASKED} messages that were not asked for") from None


def _end_for(wire: Wire, word: dict[str, Any], silent: list[int] = ()) -> None:
    """End this process because of another, unless it is ending anyway."""
    if wire.exiting.acquire(blocking=False):
        if not wire.ending.is_set():
            _leave(wire, word, word["line"], silent)
        wire.exiting.release()


def _leave(wire: Wire, word: dict[str, Any], line: str, silent: list[int] = ()) -> None:
    """Pass the word on, print the line, and end. Process 0 ends last, because JAX's service ends with it."""
    for peer in wire.peers.values():
        frames.send_now(peer, {"end": word}, timeout=1.0)
    who = f"process {wire.rank}: " if wire.rank else ""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"{chr(10) * sys.stderr.isatty()}error: {who}{line}", file=sys.stderr, flush=True)
    if not wire.rank:
        deadline = time.monotonic() + 2 * GRACE
        for peer, reader in wire.readers.items():
            if reader is not threading.current_thread() and peer not in silent:
                reader.join(max(deadline - time.monotonic(), 0))
    os._exit(word["status"])
