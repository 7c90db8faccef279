"""How the processes of a run meet: each connects to process 0, which compares what must be alike on all of them."""

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from deeplearn.errors import UserError
from deeplearn.parallel import frames, handshake, messages, tokens
from deeplearn.parallel.differences import differences, named

POLL = 0.05  # seconds between two looks at who has arrived
_TOKENS = f"{tokens.VARIABLE}, or without it the workdir, must be the same on all processes"


def await_all(
    address: tuple[str, int], count: int, fields: Mapping[str, Any], timeout: float, token: bytes
) -> dict[int, frames.Channel]:
    """Process 0's side: wait for all others.

    Every connection has a thread until its peer has proved that it knows the token, so that none delays another. When
    there are too many, the oldest is closed: a process of the run proves itself at once, and connects again otherwise.

    Args:
      address: host and port as --coordinator names them; a loopback host is listened at on loopback only.
      count: how many processes there are.
      fields: what must be alike.
      timeout: seconds.
      token: the run's, b"" without one.

    Raises:
      UserError: a process did not arrive, or is different, or the port is taken.
    """
    deadline = time.monotonic() + timeout
    peers, told, others = {}, {0: fields}, False
    arrivals, handshakes = queue.SimpleQueue(), {}
    with _listening(*address) as server, contextlib.ExitStack() as stack:
        stack.callback(lambda: [_hang_up(connection) for connection in handshakes])
        while missing := set(range(1, count)) - peers.keys():
            if time.monotonic() > deadline:
                line = f"{named(missing)} of {count} did not arrive within {timeout:g} s; see what they say if they run"
                _refuse(peers, f"{line}; others came with another token: {_TOKENS}" if others else line)
            if connection := _accepted(server):
                if len(handshakes) >= 4 * count + 64:
                    oldest = next(iter(handshakes))
                    del handshakes[oldest]
                    _hang_up(oldest)
                thread = threading.Thread(target=_greet, args=(connection, token, arrivals), daemon=True)
                try:
                    thread.start()
                    handshakes[connection] = thread
                except RuntimeError:  # the system has no more threads; the process connects again
                    connection.close()
            while not arrivals.empty():
                connection, channel, their_fields = arrivals.get()
                others |= channel is frames.WrongKey
                if handshakes.pop(connection, None) is None or not isinstance(channel, frames.Channel):
                    continue
                if channel.peer in peers and not frames.hung_up(peers[channel.peer]):
                    line = f"there is a process {channel.peer} already; each needs a --process of its own"
                    frames.send(channel, {"refused": line})
                    connection.close()
                    continue
                peers[channel.peer], told[channel.peer] = channel, their_fields
            if any(rank >= count for rank in peers):
                break  # it counts other processes, and that is a difference
    if line := differences(told):
        _refuse(peers, f"{line}; start all with the same command and files")
    for peer in peers.values():
        frames.send(peer, {"go": True})
        keep_alive(peer.connection)
    return peers


def arrive(
    address: tuple[str, int], rank: int, fields: Mapping[str, Any], timeout: float, workdir: str | os.PathLike | None
) -> frames.Channel:
    """Another process's side: connect to process 0 until both know that the other knows the token.

    Args:
      address: host and port of process 0.
      rank: this process.
      fields: what must be alike.
      timeout: seconds.
      workdir: where the token may be, which process 0 may still have to create.

    Raises:
      UserError: process 0 did not arrive, or what it says.
    """
    deadline = time.monotonic() + timeout
    place, cause = f"{address[0]}:{address[1]}", None
    while True:
        try:
            channel = _introduced(address, rank, workdir, deadline)
            break
        except (OSError, EOFError, frames.Malformed, _NoToken) as error:
            if not isinstance(error, OSError) or isinstance(cause, OSError | None):
                cause = error  # but what process 0 did says more than that it has ended since
            if time.monotonic() > deadline:
                raise UserError(_why_not(cause, place, timeout, workdir)) from error
            time.sleep(0.1)
    frames.send(channel, {"fields": fields})
    try:
        answer = frames.receive(channel, deadline=deadline + handshake.HELLO)
    except (OSError, EOFError, frames.Malformed) as error:
        what = "hung up" if isinstance(error, EOFError) else f"did not answer ({error})"
        raise UserError(f"process 0 at {place} {what}; see what it says") from error
    if "go" not in answer:
        raise UserError(messages.one_line(str(answer.get("refused"))))
    channel.connection.settimeout(None)
    keep_alive(channel.connection)
    return channel


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel ask now and then: a machine without power closes no sockets."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}.items():
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _NoToken(Exception):
    """The file that will hold the token does not exist yet."""


def _listening(host: str, port: int) -> socket.socket:
    try:
        if tokens.is_loopback(host):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server(("127.0.0.1" if host == "localhost" else host, port), family=family)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port}: {os.strerror(error.errno)}; choose another --coordinator"
        ) from error


def _accepted(server: socket.socket) -> socket.socket | None:
    """The next connection, if there is one soon."""
    server.settimeout(POLL)
    try:
        return server.accept()[0]
    except TimeoutError:
        return None
    except OSError:  # the peer has gone already, or this process has no file descriptor left for it
        time.sleep(POLL)
        return None


def _greet(connection: socket.socket, token: bytes, arrivals: queue.SimpleQueue) -> None:
    """Put (connection, channel, fields) among the arrivals, or instead of a channel the kind of error."""
    try:
        arrivals.put((connection, *handshake.answer(connection, token)))
    except (OSError, EOFError, frames.Malformed) as error:
        connection.close()
        arrivals.put((connection, type(error), None))


def _hang_up(connection: socket.socket) -> None:
    """Make the thread that reads from it end."""
    with contextlib.suppress(OSError):  # it was closed already
        connection.shutdown(socket.SHUT_RDWR)


def _refuse(peers: dict[int, frames.Channel], line: str) -> None:
    for peer in peers.values():
        frames.send(peer, {"refused": line})
    raise UserError(line)


def _introduced(address, rank, workdir, deadline) -> frames.Channel:
    tokens.find(address[0], workdir)  # without the right to a token there is nothing to wait for
    connection = socket.create_connection(address, timeout=max(deadline - time.monotonic(), 0.1))
    try:
        if connection.getsockname() == connection.getpeername():
            # A kernel may connect a port of this machine, at which nobody listens, to itself.
            raise ConnectionRefusedError(None, "Connection refused")
        token = tokens.find(address[0], workdir)  # process 0 creates it before it listens
        if token is None:
            raise _NoToken
        return handshake.ask(connection, rank, token)
    except BaseException:
        connection.close()
        raise


def _why_not(error: Exception, place: str, timeout: float, workdir: str | os.PathLike | None) -> str:
    """Why a process did not meet process 0 in time, in a line."""
    if isinstance(error, _NoToken):
        return (
            f"process 0 is at {place}, but the token {workdir}/{tokens.FILE} did not appear within {timeout:g} s; "
            f"choose a --workdir that all processes share, or set {tokens.VARIABLE} on all of them"
        )
    if isinstance(error, EOFError | frames.Malformed):
        return (
            f"what listens at {place} did not prove within {timeout:g} s that it is process 0 of this run; "
            f"see what process 0 says, and correct --coordinator: {_TOKENS}"
        )
    cause = getattr(error, "strerror", None) or error
    return (
        f"process 0 did not arrive at {place} within {timeout:g} s ({cause}); "
        "see what it says, if it runs, or correct --coordinator"
    )
