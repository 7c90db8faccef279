"""How two processes prove to each other that they know the run's token, before anything else is said.

    rank -> 0   {"process": rank, "nonce": a}    HMAC with the token
    0 -> rank   {"nonce": b}                     HMAC with the token, over a too
    rank -> 0   {"proof": true}                  HMAC with a key made of token, rank, a and b, as all that follows
    rank -> 0   {"fields": {...}}

A stranger is not answered. Whoever repeats a recorded first frame gets a nonce, and cannot send the third one.
"""

import hmac
import re
import secrets
import socket
import time
from typing import Any

from deeplearn.parallel import frames

HELLO = 5.0  # seconds for the whole handshake
LIMIT = 200  # bytes of a frame of a peer that has not proved anything yet
RANKS = 2**20  # above any number of processes
_NONCE = re.compile("[0-9a-f]{32}")


def ask(connection: socket.socket, rank: int, token: bytes) -> frames.Channel:
    """A process's side: prove to process 0 that this is `rank`, and have it prove that it is process 0.

    Raises:
      frames.Malformed, EOFError, OSError: the other side is not process 0 of this run, as far as it has shown.
    """
    deadline = time.monotonic() + HELLO
    nonce = secrets.token_hex(16)
    connection.settimeout(HELLO)
    connection.sendall(frames.encode(token, "hello", {"process": rank, "nonce": nonce}, LIMIT))
    answer = frames.decode(token, f"answer to {nonce}", *frames.read(connection, LIMIT, deadline))
    channel = frames.Channel(connection, _key(token, rank, nonce, _nonce(answer)), rank, 0)
    frames.send(channel, {"proof": True})
    return channel


def answer(connection: socket.socket, token: bytes) -> tuple[frames.Channel, dict[str, Any]]:
    """Process 0's side, which answers nothing to a peer that does not know the token.

    Returns:
      The channel to the other process, and its fields.

    Raises:
      frames.WrongKey: the peer is a process with another token, or repeats what it has recorded.
      frames.Malformed, EOFError, OSError: the peer is a stranger, or hung up.
    """
    deadline = time.monotonic() + HELLO
    hello = frames.decode(token, "hello", *frames.read(connection, LIMIT, deadline))
    rank, theirs, mine = hello.get("process"), _nonce(hello), secrets.token_hex(16)
    if type(rank) is not int or not 0 < rank < RANKS:  # a bool is an int too
        raise frames.Malformed("a rank that cannot be")
    connection.sendall(frames.encode(token, f"answer to {theirs}", {"nonce": mine}, LIMIT))
    channel = frames.Channel(connection, _key(token, rank, theirs, mine), 0, rank)
    frames.receive(channel, LIMIT, deadline)
    fields = frames.receive(channel, deadline=time.monotonic() + HELLO).get("fields")
    if not isinstance(fields, dict):
        raise frames.Malformed("no fields")
    connection.settimeout(None)
    return channel, fields


def _nonce(message: dict[str, Any]) -> str:
    nonce = message.get("nonce")
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise frames.Malformed("no nonce")
    return nonce


def _key(token: bytes, rank: int, theirs: str, mine: str) -> bytes:
    return hmac.digest(token, f"session {rank} {theirs} {mine}\n".encode(), "sha256")
