"""What a stranger can do to the processes of a run before they have met: nothing, and it learns nothing."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deeplearn.errors import UserError
from deeplearn.parallel import frames, handshake, meeting, tokens, wire
from tests.deeplearn.parallel.launch import free_port

TOKEN = "a-token-of-this-test"
SECRET = "s3cret"
FIELDS = {"config.path": SECRET}
NONCE = "0123456789abcdef" * 2
WAIT = 60.0  # seconds in which the real processes must meet; they need a fraction of one


@pytest.fixture(autouse=True)
def token(monkeypatch):
    """The handshake's deadline is above the meeting's: what waits for a stranger to say something does not meet."""
    monkeypatch.setenv(tokens.VARIABLE, TOKEN)
    monkeypatch.setattr(handshake, "HELLO", 2 * WAIT)


def frame(payload, label="hello"):
    return frames.HEADER.pack(len(payload), frames._mac(TOKEN.encode(), label, payload)) + payload


def hello(rank="1", nonce=f'"{NONCE}"'):
    """A first frame with the right HMAC, as of somebody who has recorded it or knows the token."""
    return frame(f'{{"process": {rank}, "nonce": {nonce}}}'.encode())


def recorded(fields=FIELDS):
    """All that process 1 sent in an earlier meeting."""
    key = handshake._key(TOKEN.encode(), 1, NONCE, "f" * 32)
    proof, told = frames.encode(key, "1 to 0, 0", {"proof": True}), frames.encode(key, "1 to 0, 1", {"fields": fields})
    return hello() + proof + told


def one_by_one(connection):
    for byte in hello()[:20]:
        connection.sendall(bytes([byte]))
        time.sleep(0.01)


def reflected(connection):
    """Send process 0's answer back to it as the proof."""
    connection.sendall(hello())
    answer = connection.recv(1000)
    connection.sendall(answer)
    return answer


def with_token(token):
    def introduce(connection):
        with pytest.raises(EOFError):
            handshake.ask(connection, 1, token)

    return introduce


def no_fields(value):
    def say(connection):
        frames.send(handshake.ask(connection, 1, TOKEN.encode()), value)

    return say


TLS = bytes.fromhex("1603010200010001fc0303") + bytes(500)
SILENT = {  # what is answered by nothing at all
    "random bytes": bytes(range(255, 0, -1)) * 12,
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": TLS,
    "an empty line": b"\n",
    "a null byte": b"\0",
    "an older version": b'{"process": 1, "fields": {}}\n',
    "10 MB": b"x" * 10**7,
    "10 MB of nulls": bytes(10**7),
    "nothing": b"",
    "a closed connection": lambda connection: connection.shutdown(socket.SHUT_WR),
    "a reset connection": lambda connection: connection.close(),
    "slow bytes": one_by_one,
    "half a frame": hello()[:50],
    "the greatest length": frames.HEADER.pack(2**32 - 1, bytes(32)),
    "a length above the limit": frames.HEADER.pack(handshake.LIMIT + 1, bytes(32)) + bytes(handshake.LIMIT + 1),
    "an empty payload": frames.HEADER.pack(0, bytes(32)),
    "no HMAC": frames.HEADER.pack(len(hello()) - 36, bytes(32)) + hello()[36:],
    "an HMAC without token": frames.encode(b"", "hello", {"process": 1, "nonce": NONCE}),
    "another token": with_token(b"another-token-of-16"),
    "another label": frame(hello()[36:], label="answer"),
    "deep JSON": frame(b"[" * handshake.LIMIT),
    "deep JSON in an object": frame(b'{"a":' * (handshake.LIMIT // 5)),
    "not UTF-8": frame(b'{"process": "\xff"}'),
    "UTF-16": frame('{"process": 1}'.encode("utf-16")),
    "a list": frame(b"[1]"),
    "rank 0": hello(rank="0"),
    "a negative rank": hello(rank="-1"),
    "a huge rank": hello(rank="9" * 100),
    "a rank above all": hello(rank=str(handshake.RANKS)),
    "a boolean rank": hello(rank="true"),
    "a float rank": hello(rank="1.0"),
    "a rank that is not a number": hello(rank="NaN"),
    "an infinite rank": hello(rank="1e999"),
    "a rank in quotes": hello(rank='"1"'),
    "no rank": hello(rank="null"),
    "no nonce": hello(nonce="null"),
    "a short nonce": hello(nonce='"0"'),
    "a nonce of other letters": hello(nonce=f'"{NONCE.upper()}"'),
    "a nonce with a newline": hello(nonce=f'"{NONCE}\\n"'),
    "a nonce that is a list": hello(nonce="[]"),
}
ANSWERED = {  # by a nonce, and no more
    "the first frame of a recording": hello(),
    "a recording": recorded(),
    "reflection": reflected,
    "junk after the first frame": hello() + bytes(range(255, 0, -1)) * 2,
    "a great length after the first frame": hello() + frames.HEADER.pack(handshake.LIMIT + 1, bytes(32)) + bytes(10**6),
    "fields that are none": no_fields({"fields": 3}),
    "no fields": no_fields({"other": {}}),
}


@contextlib.contextmanager
def listening(count, timeout=WAIT):
    """Process 0, which waits for the others: its port, and a pool whose first future it is."""
    port = free_port()
    with ThreadPoolExecutor(count) as pool:
        zero = pool.submit(wire.meet, f"127.0.0.1:{port}", 0, count, FIELDS, timeout)
        while not zero.done():
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield port, zero, pool


def met(port, zero, pool, ranks=(1,)):
    """The wires of all processes, whose messages have gone round once."""
    count = len(ranks) + 1
    others = [pool.submit(wire.meet, f"127.0.0.1:{port}", rank, count, FIELDS, WAIT) for rank in ranks]
    wires = [future.result() for future in (zero, *others)]
    with ThreadPoolExecutor(count) as round:
        assert list(round.map(lambda w: wire.gathered(w, w.rank), wires)) == [list(range(count))] * count
        list(round.map(wire.close, wires))


def received(connection):
    """All that comes until the other side hangs up."""
    data = b""
    connection.settimeout(WAIT)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while part := connection.recv(1000):
            data += part
    return data


@pytest.mark.parametrize("name", [*SILENT, *ANSWERED])
def test_a_stranger(name):
    """The real process 1 arrives while the stranger is connected, and both meet; the stranger learns nothing."""
    attack = (SILENT | ANSWERED)[name]
    with listening(2) as (port, zero, pool), socket.create_connection(("127.0.0.1", port)) as stranger:
        answer = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            if callable(attack):
                answer = attack(stranger) or b""
            else:
                stranger.sendall(attack)
        met(port, zero, pool)
        if stranger.fileno() >= 0:
            answer += received(stranger)
    assert not answer or name in ANSWERED
    assert SECRET.encode() not in answer and len(answer) < 2 * handshake.LIMIT


def test_a_connection_has_a_key_of_its_own():
    """Whoever repeats what one side said before does not know the other's nonce."""
    keys = [handshake._key(*of) for of in ((b"t", 1, "a", "b"), (b"u", 1, "a", "b"), (b"t", 2, "a", "b"))]
    keys += [handshake._key(b"t", 1, *nonces) for nonces in ("cb", "ac")]
    assert len(set(keys)) == len(keys)


def test_many_strangers():
    """More than there is room for, all of which hold their connections open."""
    with listening(3) as (port, zero, pool), contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(300)]
        assert received(strangers[0]) == b"", "the oldest is closed when there is no more room"
        met(port, zero, pool, ranks=(2, 1))
        assert {received(stranger) for stranger in strangers} == {b""}


@pytest.mark.parametrize("data", [frames.HEADER.pack(handshake.LIMIT + 1, bytes(32)), TLS, b"GET / HTTP/1.1\r\n" * 3])
def test_a_great_length_ends_the_handshake(data):
    """The rest is not waited for, nor read."""
    ends = socket.socketpair()
    with ends[0], ends[1]:
        ends[1].sendall(data)
        with pytest.raises(frames.Malformed, match="a length of .* bytes, of at most 200"):
            handshake.answer(ends[0], TOKEN.encode())


def test_other_tokens_are_named():
    """On both sides: an old token on one machine is a user's mistake, which takes no rank."""
    with listening(2, timeout=2) as (port, zero, _):
        with socket.create_connection(("127.0.0.1", port)) as other, pytest.raises(EOFError):
            handshake.ask(other, 1, b"another-token-of-16")
        with pytest.raises(UserError) as error:
            zero.result()
    assert str(error.value) == (
        "process 1 of 2 did not arrive within 2 s; see what they say if they run; others came with another token: "
        "DEEPLEARN_TOKEN, or without it the workdir, must be the same on all processes"
    )


def test_a_false_process_0():
    """It gets a rank and a nonce, and the real one is waited for."""
    port, heard = free_port(), []

    def pretend(server):
        for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(36), hello(), recorded()):
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(10_000))
                connection.sendall(answer)
        server.close()

    with ThreadPoolExecutor(3) as pool:
        server = socket.create_server(("127.0.0.1", port))
        one = pool.submit(wire.meet, f"127.0.0.1:{port}", 1, 2, FIELDS, WAIT)
        pool.submit(pretend, server).result()
        met_zero = pool.submit(wire.meet, f"127.0.0.1:{port}", 0, 2, FIELDS, WAIT)
        with ThreadPoolExecutor(2) as round:
            list(round.map(wire.close, [met_zero.result(), one.result()]))
    assert len(heard) == 5 and all(SECRET.encode() not in data and len(data) < handshake.LIMIT for data in heard)
    assert len(set(heard)) == 5, "a nonce was used twice"


def test_only_a_false_process_0():
    port, ends = free_port(), threading.Event()

    def pretend(server):
        server.settimeout(0.1)
        while not ends.is_set():
            with contextlib.suppress(TimeoutError):
                server.accept()[0].close()

    with socket.create_server(("127.0.0.1", port)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(pretend, server)
        with pytest.raises(UserError, match=f"what listens at 127.0.0.1:{port} did not prove within 1 s that it is"):
            wire.meet(f"127.0.0.1:{port}", 1, 2, FIELDS, 1.0)
        ends.set()


@pytest.mark.parametrize(
    "host, expected", [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("10.0.0.2", "::"), ("node-3", "::")]
)
def test_loopback_is_listened_at_on_loopback_only(host, expected):
    with meeting._listening(host, 0) as server:
        assert server.getsockname()[0] in {expected, "0.0.0.0" if expected == "::" else expected}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("workdir", [None, "gs://bucket/run"])
def test_no_token_on_a_network(monkeypatch, rank, workdir):
    monkeypatch.delenv(tokens.VARIABLE)
    with pytest.raises(UserError, match="several processes on a network need a token.*; set DEEPLEARN_TOKEN to the"):
        wire.meet(f"10.0.0.2:{free_port()}", rank, 2, {}, 1.0, workdir)
