"""Authenticated messages between two processes over TCP.

A frame is the length of its payload (4 bytes, big-endian), an HMAC-SHA256 (32 bytes) and the payload, a JSON object in
UTF-8. The HMAC is over a label and the payload; the label holds sender, receiver and sequence number, so that a frame
that was changed, left out, repeated or sent back is an error. Nothing is parsed before its length and its HMAC are
right. Frames are not encrypted.
"""

import dataclasses
import hmac
import json
import select
import socket
import struct
import threading
import time
from typing import Any

LIMIT = 16 * 2**20  # bytes of a payload: the largest that a run sends is a manifest for each process
HEADER = struct.Struct(">I32s")


class Malformed(Exception):
    """The received bytes are not a message of this protocol."""


class WrongKey(Malformed):
    """A frame that was made with another key, or at another place in the order of frames."""


@dataclasses.dataclass
class Channel:
    """One end of a connection between two processes that know the same key.

    Fields:
      connection: the socket.
      key: of this connection alone.
      name, peer: which process this end is, and which the other.
      sent, received: the numbers of frames in each direction.
      sending: held while a frame is sent.
    """

    connection: socket.socket
    key: bytes
    name: int
    peer: int
    sent: int = 0
    received: int = 0
    sending: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def encode(key: bytes, label: str, message: Any, limit: int = LIMIT) -> bytes:
    """The frame of a message.

    Args:
      key: the shared secret.
      label: sender, receiver and sequence number; the HMAC covers it.
      message: what JSON can hold.
      limit: bytes of the payload that a receiver accepts.

    Raises:
      ValueError: it is longer than a receiver accepts.
    """
    payload = json.dumps(message).encode()
    if len(payload) > limit:
        raise ValueError(f"a message of {len(payload):,} bytes between processes; at most {limit:,} are possible")
    return HEADER.pack(len(payload), _mac(key, label, payload)) + payload


def read(connection: socket.socket, limit: int, deadline: float | None) -> tuple[bytes, bytes]:
    """The HMAC and the payload of the next frame, not yet checked.

    Args:
      connection: the socket to read from.
      limit: bytes of the payload.
      deadline: time.monotonic() until which the whole frame must be there; None waits as long as it takes.

    Raises:
      Malformed: the payload is longer than `limit`.
      EOFError: the other side hung up.
      OSError: the connection is broken, or the deadline has passed.
    """
    length, mac = HEADER.unpack(_read_exactly(connection, HEADER.size, deadline))
    if length > limit:
        raise Malformed(f"a length of {length:,} bytes, of at most {limit:,}")
    return mac, _read_exactly(connection, length, deadline)


def decode(key: bytes, label: str, mac: bytes, payload: bytes) -> dict[str, Any]:
    """The message of a frame.

    >>> decode(b"key", "a", *HEADER.unpack(encode(b"key", "a", {})[:36])[1:], b"{}")
    {}

    Args:
      key, label: as for `encode`.
      mac, payload: as `read` returns them.

    Raises:
      WrongKey: the HMAC is that of another key, label or payload.
      Malformed: the payload is not a JSON object.
    """
    if not hmac.compare_digest(mac, _mac(key, label, payload)):
        raise WrongKey("an HMAC that does not match")
    try:
        message = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"a payload that is not JSON ({type(error).__name__})") from error
    if not isinstance(message, dict):
        raise Malformed("a payload that is not a JSON object")
    return message


def send(channel: Channel, message: dict[str, Any]) -> None:
    """Send a message; waits while the connection's buffers are full.

    A connection that is broken is not an error here: whoever reads from it learns that.
    """
    with channel.sending:
        _send(channel, message)


def send_now(channel: Channel, message: dict[str, Any], timeout: float = 0.0) -> None:
    """Send a short message if that is possible within `timeout` seconds: never wait for a peer that does not read."""
    if channel.sending.acquire(timeout=timeout):
        try:
            writable = select.poll()  # unlike select.select, works for file descriptors above 1023
            writable.register(channel.connection, select.POLLOUT)
            if writable.poll(1000 * timeout):
                _send(channel, message)
        except (OSError, ValueError):  # closed
            pass
        finally:
            channel.sending.release()


def receive(channel: Channel, limit: int = LIMIT, deadline: float | None = None) -> dict[str, Any]:
    """The next message, with the errors of `read` and `decode`."""
    mac, payload = read(channel.connection, limit, deadline)
    message = decode(channel.key, f"{channel.peer} to {channel.name}, {channel.received}", mac, payload)
    channel.received += 1
    return message


def hung_up(channel: Channel) -> bool:
    """Whether the peer has closed a connection of which nothing is left to read."""
    try:
        return not channel.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _send(channel: Channel, message: dict[str, Any]) -> None:
    frame = encode(channel.key, f"{channel.name} to {channel.peer}, {channel.sent}", message)
    channel.sent += 1
    try:
        channel.connection.sendall(frame)
    except OSError:  # whoever reads from this connection learns that it is broken
        pass


def _mac(key: bytes, label: str, payload: bytes) -> bytes:
    return hmac.digest(key, label.encode() + b"\n" + payload, "sha256")


def _read_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(remaining)
        part = connection.recv(min(size - len(data), 2**16))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
