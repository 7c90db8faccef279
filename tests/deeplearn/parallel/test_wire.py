import contextlib
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deeplearn.errors import UserError
from deeplearn.parallel import differences, frames, handshake, meeting, wire
from tests.deeplearn.parallel.launch import free_port


def meet(*, count, ranks=None, fields=lambda rank: {}, timeout=5.0):
    """What `wire.meet` gives each rank, or raises there."""
    ranks = range(count) if ranks is None else ranks
    address = f"localhost:{free_port()}"

    def one(rank):
        try:
            return wire.meet(address, rank, count, fields(rank), timeout)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


def connected(port):
    """A connection to process 0, as soon as it listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("localhost", port))


def everywhere(function, met):
    with ThreadPoolExecutor(len(met)) as pool:
        return list(pool.map(function, met))


@pytest.mark.parametrize("count", [2, 5])
def test_all_hear_all(count):
    met = meet(count=count)
    for _ in range(3):
        said = everywhere(lambda w: wire.gathered(w, {"rank": w.rank}), met)
        assert said == [[{"rank": rank} for rank in range(count)]] * count
    everywhere(wire.close, met)


def test_the_order_is_that_of_the_ranks():
    """Whoever arrived first."""
    ends = {rank: socket.socketpair() for rank in (3, 1, 2)}
    opened = wire.Wire(0, 4, {rank: frames.Channel(ends[rank][0], b"", 0, rank) for rank in ends})
    opened.said = {rank: queue.Queue() for rank in ends}
    for rank, said in opened.said.items():
        said.put(rank)
    assert wire.gathered(opened, 0) == [0, 1, 2, 3]
    for rank, (mine, theirs) in ends.items():
        with mine, theirs:
            assert frames.receive(frames.Channel(theirs, b"", rank, 0)) == {"say": [0, 1, 2, 3]}


def test_a_machine_without_power_is_noticed():
    """In half a minute, by unanswered probes or by what was sent and not confirmed; Linux counts that in ms."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        meeting.keep_alive(connection)
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        if not all(hasattr(socket, name) for name in names):
            pytest.skip("not Linux")
        idle, every, count, most = (connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert idle + every * count == 30 and most == 30 * 1000


@pytest.mark.parametrize("ranks, said", [((0, 2), "processes 1 and 3 of 4"), ((0, 1, 2), "process 3 of 4")])
def test_the_missing_are_named(ranks, said):
    lines = meet(count=4, ranks=ranks, timeout=1)
    assert all(f"{said} did not arrive within 1 s" in line for line in lines)


def test_process_0_is_missing():
    (line,) = meet(count=2, ranks=(1,), timeout=1)
    assert "process 0 did not arrive at localhost:" in line and "within 1 s (Connection refused)" in line


def test_a_connection_to_oneself_is_none(monkeypatch):
    """A kernel may make one of a port that nobody listens at, if it is among those that it gives out."""
    connect, tried = socket.create_connection, []

    def mirrored(address, timeout):
        tried.append(address)
        if len(tried) > 1:
            return connect(address, timeout)
        mirror = socket.socket()
        mirror.bind(address)
        mirror.connect(address)
        return mirror

    monkeypatch.setattr(socket, "create_connection", mirrored)
    (line,) = meet(count=2, ranks=(1,), timeout=1)
    assert "process 0 did not arrive at localhost:" in line and len(tried) > 1


def test_the_different_are_named():
    """And in what, the same on every process."""
    lines = meet(count=4, fields=lambda rank: {"config.lr": 0.1, "jax": f"0.{rank // 2}"})
    assert len(set(lines)) == 1
    assert "processes 2 and 3 were not started as process 0 was: jax is 0.0 on process 0 and 0.1 on proc" in lines[0]


@pytest.mark.parametrize("rank", [2, 3])
def test_another_number_of_processes(rank):
    address = f"localhost:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        zero = pool.submit(wire.meet, address, 0, 2, {}, 5)
        other = pool.submit(wire.meet, address, rank, rank + 1, {}, 5)
        for place in (zero, other):
            with pytest.raises(UserError, match=f"--processes is 2 on process 0 and {rank + 1} on process {rank}"):
                place.result()


@pytest.mark.parametrize("fields", [({}, {"lr": 1}), ({"lr": 1}, {})])
def test_what_one_alone_has_is_different(fields):
    here, there = (of.get("lr", "absent") for of in fields)
    line = differences.differences(dict(enumerate(fields)))
    assert line.endswith(f"lr is {here} on process 0 and {there} on process 1")


def test_a_process_that_comes_back():
    """It ended before all were there, and was started again."""
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        zero = pool.submit(wire.meet, f"localhost:{port}", 0, 3, {}, 20)
        with contextlib.closing(connected(port)) as connection:
            channel = handshake.ask(connection, 1, b"")
            frames.send(channel, {"fields": {"--processes": 3}})
        others = [pool.submit(wire.meet, f"localhost:{port}", rank, 3, {}, 20) for rank in (1, 2)]
        met = [future.result() for future in (zero, *others)]
        assert everywhere(lambda w: wire.gathered(w, w.rank), met) == [[0, 1, 2]] * 3
        everywhere(wire.close, met)


def test_strangers_and_doubles():
    """What knocks at the port without a word is let go; a second process of one number is refused, the first stays."""
    port = free_port()
    address = f"localhost:{port}"
    with ThreadPoolExecutor(4) as pool:
        zero = pool.submit(wire.meet, address, 0, 3, {}, 20)
        stranger = connected(port)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        arrived = threading.Event()
        ones = [pool.submit(wire.meet, address, 1, 3, {}, 20) for _ in range(2)]
        for one in ones:
            one.add_done_callback(lambda _: arrived.set())
        assert arrived.wait(20)
        (refused,) = (one for one in ones if one.done())
        assert "there is a process 1 already" in str(refused.exception())
        two = pool.submit(wire.meet, address, 2, 3, {}, 20)
        ones.remove(refused)
        met = [future.result() for future in (zero, ones[0], two)]
        assert everywhere(lambda w: wire.gathered(w, w.rank), met) == [[0, 1, 2]] * 3
        everywhere(wire.close, met)
        stranger.close()


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        with pytest.raises(UserError, match="cannot listen on port .*: Address already in use; choose another --coo"):
            wire.meet(f"localhost:{taken.getsockname()[1]}", 0, 2, {}, 1)
