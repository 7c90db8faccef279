"""Pacing, the choice among candidates, and the processes that take turns."""

import pytest

from deeplearn.benchmark import timing
from deeplearn.benchmark.contender import Contender


class Clock:
    """A perf_counter that only the contenders move."""

    def __init__(self):
        self.now = 0.0

    def contender(self, step_seconds, detail=""):
        def run(steps):
            self.now += steps * step_seconds
            return 0.5

        return Contender(run, 7, detail)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_clock_counts_steps_and_seconds(clock):
    turn = timing.clock(clock.contender(0.25), 8)
    assert (turn.steps, turn.seconds, turn.loss) == (8, 2.0, 0.5)
    assert turn.peak_bytes > 10_000_000


@pytest.mark.parametrize("step_seconds", [0.001, 0.03, 5.0])
def test_warm_up_finds_the_pace(clock, step_seconds):
    assert timing.warm_up(clock.contender(step_seconds), 1.0) == pytest.approx(step_seconds)


def test_the_quickest_candidate_is_chosen(clock):
    chosen, pace = timing.quickest([clock.contender(0.02), clock.contender(0.01, "channels last")], 0.5)
    assert chosen.detail == "channels last" and pace == pytest.approx(0.01)


def dies(connection):
    raise SystemExit(3)


def echoes(connection):
    connection.send(connection.recv())


def test_a_process_answers():
    with timing.process(echoes) as connection:
        connection.send("ping")
        assert timing.receive(connection, "echo") == "ping"


def test_a_process_that_dies_is_named():
    with timing.process(dies) as connection, pytest.raises(RuntimeError, match="'flax' died"):
        timing.receive(connection, "flax")


def test_contenders_take_turns():
    lines = []
    figures = timing.measure("sequence_rnn", rounds=2, seconds=0.02, names=("flax",), progress=lines.append)["flax"]
    assert len(figures.rates) == 2 and min(figures.rates) > 0
    assert figures.parameters == 32 + 32 * 32 + 32 + 32 + 1 and figures.peak_bytes > 50_000_000
    assert lines == [
        "sequence_rnn: flax warms up",
        "sequence_rnn: round 1 of 2",
        "sequence_rnn: round 2 of 2",
    ]
