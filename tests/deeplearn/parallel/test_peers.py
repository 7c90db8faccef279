"""What a process of a run can send to another, after they have met: nothing that stops it from listening unseen."""

import queue
import socket
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from deeplearn.parallel import frames, messages, wire

KEY = b"of this connection"
GO_ON = "; the same command on every process goes on from the last checkpoint"
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of `leave`
WAIT = 60  # seconds, of which a test needs a few


@pytest.fixture
def pair(monkeypatch):
    """`pair(receiver=0, silence=60)`: a wire of two processes, the other's channel, and a queue of exit statuses."""
    ends, statuses = [], queue.Queue()

    def leave(status):
        statuses.put(status)
        raise SystemExit  # of the thread alone, which holds the lock for leaving: no other leaves

    monkeypatch.setattr(wire.os, "_exit", leave)
    monkeypatch.setattr(wire, "GRACE", 0.1)

    def pair(receiver=0, silence=60.0):
        ends.extend(socket.socketpair())
        mine, theirs = (frames.Channel(ends[i], KEY, abs(receiver - i), 1 - abs(receiver - i)) for i in range(2))
        ends.append(wire.opened(receiver, 2, {1 - receiver: mine}, silence))
        return ends[2], theirs, statuses

    yield pair
    ends[2].ending.set()
    ends[1].close()
    for reader in ends[2].readers.values():
        reader.join(WAIT)
    ends[0].close()


def signed(payload, number=0):
    """The frame of a payload, as process 1 sends it to process 0."""
    return frames.HEADER.pack(len(payload), frames._mac(KEY, f"1 to 0, {number}", payload)) + payload


WORD = messages.end(1, "a line")
BROKEN = {
    "junk": (bytes(range(250, 240, -1)) * 1000, "of at most 16,777,216"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10, "of at most 16,777,216"),
    "one byte above the limit": (frames.HEADER.pack(frames.LIMIT + 1, bytes(32)), "a length of 16,777,217 bytes"),
    "another key": (frames.encode(b"another", "1 to 0, 0", {"say": 1}), "an HMAC that does not match"),
    "a frame that was left out": (frames.encode(KEY, "1 to 0, 1", {"say": 1}), "an HMAC that does not match"),
    "a frame that comes twice": (frames.encode(KEY, "1 to 0, 0", {"say": 1}) * 2, "an HMAC that does not match"),
    "a frame that is sent back": (frames.encode(KEY, "0 to 1, 0", {"say": 1}), "an HMAC that does not match"),
    "deep JSON": (signed(b"[" * 10**6), "a payload that is not JSON (RecursionError)"),
    "deep JSON in an object": (signed(b'{"say":' * 10**5), "a payload that is not JSON (RecursionError)"),
    "a number of many digits": (signed(b'{"say":' + b"9" * 10**5 + b"}"), "a payload that is not JSON (ValueError)"),
    "not UTF-8": (signed(b'{"say": "\xff"}'), "a payload that is not JSON (UnicodeDecodeError)"),
    "half an object": (signed(b'{"say": '), "a payload that is not JSON (JSONDecodeError)"),
    "nothing": (signed(b""), "a payload that is not JSON (JSONDecodeError)"),
    "a list": (signed(b"[1]"), "a payload that is not a JSON object"),
    "an empty object": (signed(b"{}"), "a message of no known kind"),
    "two kinds": ({"say": 1, "beat": []}, "a message of no known kind"),
    "another kind": ({"lost": "process 1"}, "a message of no known kind"),
    "a beat of no list": ({"beat": None}, "a message 'beat' with a wrong value"),
    "a beat of more than there are": ({"beat": [1, 1]}, "a message 'beat' with a wrong value"),
    "a beat of no such process": ({"beat": [2]}, "a message 'beat' with a wrong value"),
    "a beat of a negative process": ({"beat": [-1]}, "a message 'beat' with a wrong value"),
    "a beat of a boolean": ({"beat": [True]}, "a message 'beat' with a wrong value"),
    "an end of no word": ({"end": [1, "a line"]}, "a message 'end' with a wrong value"),
    "an end with more": ({"end": WORD | {"more": 1}}, "a message 'end' with a wrong value"),
    "an end without a line": ({"end": {"status": 1, "patient": False}}, "a message 'end' with a wrong value"),
    "a status above 255": ({"end": WORD | {"status": 256}}, "a message 'end' with a wrong value"),
    "a negative status": ({"end": WORD | {"status": -1}}, "a message 'end' with a wrong value"),
    "a boolean status": ({"end": WORD | {"status": True}}, "a message 'end' with a wrong value"),
    "a status that is no number": ({"end": WORD | {"status": float("nan")}}, "a message 'end' with a wrong value"),
    "a line that is no text": ({"end": WORD | {"line": 3}}, "a message 'end' with a wrong value"),
    "a long line": ({"end": WORD | {"line": "x" * 10_001}}, "a message 'end' with a wrong value"),
    "patience of a number": ({"end": WORD | {"patient": 1}}, "a message 'end' with a wrong value"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_message(pair, capsys, name):
    """The connection's other end is named in one line, and the run ends as with a lost process."""
    _, other, statuses = pair()
    data, cause = BROKEN[name]
    if isinstance(data, dict):
        frames.send(other, data)
    else:
        other.connection.sendall(data)
    assert statuses.get(timeout=WAIT) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: process 1 sent what no process of a run sends: ")
    assert cause in line and line.endswith(GO_ON)


@pytest.mark.parametrize("name", [name for name, (data, _) in BROKEN.items() if isinstance(data, dict)])
def test_what_is_no_message(name):
    with pytest.raises(frames.Malformed):
        messages.checked(BROKEN[name][0], sender=1, count=2)


@pytest.mark.parametrize("value", [None, [], [1], [1, 2, 3], {"0": 1}])
def test_process_0_says_what_all_say(pair, capsys, value):
    _, other, statuses = pair(receiver=1)
    frames.send(other, {"say": value})
    assert statuses.get(timeout=WAIT) == 1
    assert "process 1: process 0 sent what no process of a run sends: a message 'say'" in capsys.readouterr().err


def test_messages_that_nobody_asked_for(pair, capsys):
    """They do not fill the memory."""
    _, other, statuses = pair()
    for _ in range(wire.UNASKED + 1):
        frames.send(other, {"say": 1})
    assert statuses.get(timeout=WAIT) == 1
    assert f"more than {wire.UNASKED} messages that were not asked for" in capsys.readouterr().err


def test_a_fault_of_the_listener_is_not_silent(pair, capsys, monkeypatch):
    monkeypatch.setattr(messages, "checked", lambda *_: 1 / 0)
    _, other, statuses = pair()
    frames.send(other, {"say": 1})
    assert statuses.get(timeout=WAIT) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err and err.endswith(f"error: listening to process 1 failed{GO_ON}\n")


def test_a_line_of_another_process_is_one_line(pair, capsys):
    _, other, statuses = pair()
    frames.send(other, {"end": messages.end(2, "process 1 ended:\n\x1b[31mno\rroom")})
    assert statuses.get(timeout=WAIT) == 2
    assert capsys.readouterr().err == "error: process 1 ended:  [31mno room\n"


def test_a_large_value_goes_round(pair):
    """In the midst of heartbeats; one that is too large is an error of the sender."""
    opened, other, _ = pair(silence=1.0)
    value = "x" * 5_000_000
    with ThreadPoolExecutor(1) as pool:
        values = pool.submit(wire.gathered, opened, 0)
        frames.send(other, {"say": value})
        while "say" not in (message := frames.receive(other)):
            assert message == {"beat": []}
        assert message["say"] == values.result(WAIT) == [0, value]
    with pytest.raises(ValueError, match="a message of 20,000,011 bytes between processes; at most 16,777,216"):
        frames.send(other, {"say": "x" * 20_000_000})


def test_a_message_as_large_as_the_limit():
    ends = socket.socketpair()
    with ends[0], ends[1]:
        frame = frames.encode(KEY, "a", {"say": 1}, limit=10)
        ends[0].sendall(frame)
        assert frames.decode(KEY, "a", *frames.read(ends[1], 10, None)) == {"say": 1}
        ends[0].sendall(frame)
        with pytest.raises(frames.Malformed, match="a length of 10 bytes, of at most 9"):
            frames.read(ends[1], 9, None)


@pytest.mark.parametrize("receiver", [0, 1])
@pytest.mark.parametrize("data", [b"", bytes(20), frames.HEADER.pack(1000, bytes(32)) + b"{"])
def test_a_peer_that_hangs(pair, capsys, receiver, data):
    """Without a word, or in the midst of one: what is not a whole message is no sign of life."""
    _, other, statuses = pair(receiver, silence=1.0)
    other.connection.sendall(data)
    assert statuses.get(timeout=WAIT) == 2
    who, silent = ("", 1) if receiver == 0 else ("process 1: ", 0)
    assert capsys.readouterr().err == (
        f"error: {who}process {silent} has been silent for 1 s (stopped, or its machine hangs); kill it, then "
        "the same command on every process goes on from the last checkpoint\n"
    )
    word = {}
    while "end" not in word:  # which it finds when it is continued
        word = frames.receive(other)
    assert word["end"]["status"] == 2 and f"process {silent} has been silent" in word["end"]["line"]


def test_a_peer_that_does_not_read_blocks_no_heartbeat(pair):
    """Its buffers are full, and a thread waits to send to it: the others still learn that it hangs."""
    opened, other, statuses = pair(silence=1.0)
    sender = threading.Thread(target=frames.send, args=(opened.peers[1], {"say": "x" * 10**7}), daemon=True)
    sender.start()
    assert statuses.get(timeout=WAIT) == 2
    other.connection.close()
    sender.join(WAIT)


def test_a_heartbeat_does_not_wait_for_full_buffers():
    ends = socket.socketpair()
    with ends[0], ends[1]:
        ends[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                ends[0].send(bytes(1000))
        ends[0].setblocking(True)
        channel = frames.Channel(ends[0], KEY, 0, 1)
        thread = threading.Thread(target=frames.send_now, args=(channel, {"beat": []}), daemon=True)
        thread.start()
        thread.join(WAIT)
        assert not thread.is_alive() and channel.sent == 0


def test_a_last_word_waits_for_so_many_seconds(monkeypatch):
    """A poll counts milliseconds."""
    asked = []
    poll = types.SimpleNamespace(register=lambda *_: None, poll=asked.append)
    monkeypatch.setattr(frames.select, "poll", lambda: poll)
    frames.send_now(frames.Channel(None, KEY, 0, 1), {"end": WORD}, timeout=1.5)
    assert asked == [1500]


def test_a_peer_that_has_hung_up():
    ends = socket.socketpair()
    channel = frames.Channel(ends[0], KEY, 0, 1)
    assert not frames.hung_up(channel)
    ends[1].sendall(b"a")
    assert not frames.hung_up(channel), "something is left to read"
    ends[0].recv(1)
    ends[1].close()
    assert frames.hung_up(channel)
    ends[0].close()
    assert frames.hung_up(channel)


def test_an_error_waits_for_what_may_be_its_cause(pair):
    """A collective that fails because a process is silent is not the first to say so."""
    opened, _, _ = pair(receiver=1)
    opened.told = [0]
    settling = threading.Thread(target=wire.settle, args=(opened,), daemon=True)
    settling.start()
    settling.join(1.0)
    assert settling.is_alive()
    opened.told = []
    settling.join(WAIT)
    assert not settling.is_alive()


def test_a_suspended_process_blames_nobody(pair, monkeypatch):
    """Its clock has jumped between two heartbeats, and its peers' may have."""
    opened, _, statuses = pair()
    clock, jumps = time.monotonic, []
    opened.silence, opened.ending.wait = 8.0, lambda period: jumps.append(period) or len(jumps) > 3
    monkeypatch.setattr(wire.time, "monotonic", lambda: clock() + 100 * len(jumps))
    wire._beat(opened)
    assert len(jumps) == 4 and statuses.empty() and opened.heard[1] > clock() + 200
