import io
import threading

import numpy as np
import pytest

from deeplearn.comparison import lanes, live, protocol
from deeplearn.comparison.protocol import Live, Work
from deeplearn.experiment import Target


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line():
    """Rewritten at every evaluation; the clock of the second sweep of an optimizer starts anew."""
    stream, times = Terminal(), iter((0.0, 10.0, 20.0, 100.0))
    tell = live.follow("adam", stream, lambda: next(times))
    for done in (0.1, 1.0, 0.5):
        tell(Live(done, 0, 8, 1, "loss", 0.25))
    lines = stream.getvalue().split("\r\x1b[2K")[1:]
    assert [line.partition(" left")[0][-4:] for line in lines] == [
        "1:30",
        "0:00",
        "0:00",
    ]
    assert "\n" not in stream.getvalue() and "10 %, 0 of 8 runs done, 1 diverged, best loss 0.25" in lines[0]


def test_elsewhere_a_line_now_and_then():
    stream, times = io.StringIO(), iter((0.0, 10.0, 31.0, 40.0))
    tell = live.follow("adam", stream, lambda: next(times))
    for done in (0.2, 0.5, 0.6):
        tell(Live(done, 0, 8, 0, "loss", np.nan))
    assert stream.getvalue().count("\n") == 1 and "50 %" in stream.getvalue() and "0:31 left" in stream.getvalue()


def test_when_the_runs_have_ended(outcomes):
    plan = lanes.Plan(6, True, 2**20)
    (line,) = live.ended(outcomes[0], [Work(6, 1.0, 2.0, plan)])
    assert line.startswith("quick          6 runs of 40 steps in 1.0 s, after 2.0 s of compilation; 6 in one program")
    assert line.endswith("3 diverged, best accuracy 0.9")
    assert live.ended(outcomes[0], []) == ["quick          all runs are there already; 3 diverged, best accuracy 0.9"]


def test_a_nan_hides_no_later_value(outcomes, recwarn):
    """Neither while the runs train nor when they have ended."""
    told = []
    report = protocol.follow(Target("accuracy", True, 0.9), 3, told.append)
    for accuracies in ([np.nan] * 3, [np.nan, 0.4, 0.3], [np.nan, np.nan, 0.2]):
        fine = np.ones(3)
        report(1, 3, 0, {"loss": fine, "validation/loss": fine, "validation/accuracy": np.array(accuracies)})
    assert np.isnan(told[0].best) and [live.best for live in told[1:]] == [0.4, 0.4]
    outcome = outcomes[0]
    tuned = outcome.results[-1].tuned
    tuned.curves[outcome.metric][:, 0] = np.nan
    assert live.ended(outcome, [])[0].endswith("best accuracy 0.9")
    tuned.curves[outcome.metric][:] = np.nan
    assert live.ended(outcome, [])[0].endswith("best accuracy nan") and not recwarn.list


def test_runs_stop_at_the_next_report():
    told, pressed = [], threading.Event()
    tell = live.stopping(told.append, pressed)
    tell("first")
    pressed.set()
    with pytest.raises(KeyboardInterrupt):
        tell("second")
    assert told == ["first", "second"]
