import math
import os
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from deeplearn.config import base_config
from deeplearn.experiment import Target
from deeplearn.training import loop

OPT_STATE = SimpleNamespace(hyperparams={"learning_rate": 0.1, "schedule": 1.0})


def experiment(steps=20, log_every=2, eval_every=5, checkpoint_every=10, target=None, patience=0):
    config = base_config(patience=patience)
    return SimpleNamespace(
        steps=steps,
        log_every=log_every,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        target=target,
        config=config,
    )


class Script:
    """A program whose losses and accuracies are given, and hooks that remember what they were told."""

    def __init__(
        self, losses=lambda step: 1.0, accuracies=lambda step: step / 100, on_step=lambda step: None, good=True
    ):
        self.chunks, self.saved, self.lines, self.good = [], [], [], good
        self.feed = SimpleNamespace(data=lambda step, steps: None)
        self.number = int
        self.losses, self.accuracies, self.on_step = losses, accuracies, on_step
        self.hooks = loop.Hooks(
            log=lambda step, record: self.lines.append((step, record)), save=self.save, tick=self.tick
        )

    def chunk(self, state, data, steps):
        self.chunks.append(steps)
        step = state.step + steps
        return SimpleNamespace(step=step, opt_state=OPT_STATE), {"loss": jnp.float32(self.losses(step))}

    def evaluate(self, state, split):
        assert split == "validation"
        return {"accuracy": jnp.float32(self.accuracies(state.step)), "confusion": jnp.eye(2)}

    def save(self, step, state, progress, value):
        self.saved.append((step, value))
        return self.good

    def tick(self, step, record):
        self.on_step(step)

    def run(self, e, start=0, progress=None):
        state = SimpleNamespace(step=start, opt_state=OPT_STATE)
        with loop.stop_signals() as signalled:
            return loop.train(e, self, state, progress or loop.Progress(), self.hooks, signalled)


def test_stops_are_a_function_of_the_step_alone():
    """Whatever chunk a run is resumed at, it goes on as the unbroken one does."""
    e, whole = experiment(steps=23), Script()
    whole.run(e)
    stops = [sum(whole.chunks[: i + 1]) for i in range(len(whole.chunks))]
    assert stops == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20, 22, 23]
    for start in stops[:-1]:
        part = Script()
        part.run(e, start=start)
        assert part.chunks == whole.chunks[stops.index(start) + 1 :]


def test_saves_what_is_due_and_what_is_best():
    best_at_5 = Script(accuracies=lambda step: 1 / step)
    best_at_5.run(experiment())
    assert [step for step, _ in best_at_5.saved] == [5, 10, 20]
    assert [value is not None for _, value in best_at_5.saved] == [True, False, False]


def test_log_lines():
    script = Script()
    script.run(experiment(steps=5))
    assert [step for step, _ in script.lines] == [2, 4, 5]
    assert script.lines[0][1].keys() == {"loss", "learning_rate", "seconds"}
    assert script.lines[-1][1]["validation/accuracy"] == pytest.approx(0.05)
    assert "validation/confusion" not in script.lines[-1][1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_stops_before_anything_is_saved(bad):
    script = Script(losses=lambda step: bad if step > 12 else 1.0)
    with pytest.raises(loop.Diverged, match="between steps 12 and 14; the checkpoint of step 10 is kept"):
        script.run(experiment())
    assert max(step for step, _ in script.saved) == 10


def test_parameters_that_are_not_finite():
    with pytest.raises(loop.Diverged, match="a parameter is not finite at step 5"):
        Script(good=False).run(experiment())


def test_early_stopping():
    script = Script(accuracies=lambda step: 0.5 if step == 10 else 0.1)
    _, progress, reason = script.run(experiment(steps=100, patience=3))
    assert (reason, progress.best_step, progress.stale) == ("early", 10, 3)
    assert script.saved[-1][0] == 25


def test_patience_goes_on_after_a_resume():
    script = Script(accuracies=lambda step: 0.1)
    before = loop.Progress(best=0.5, best_step=10, stale=2)
    _, progress, reason = script.run(experiment(steps=100, patience=3), start=20, progress=before)
    assert (reason, progress.stale, script.saved[-1][0]) == ("early", 3, 25)


@pytest.fixture
def handlers():
    """Those of this process, which are there again after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_chunk(handlers, number):
    """And SIGTERM does nothing more: whoever sends it again, sends it to a process that is ending."""
    script = Script(on_step=lambda step: step == 6 and os.kill(os.getpid(), number))
    _, _, reason = script.run(experiment())
    assert reason == "signal" and script.saved[-1][0] == 6 and sum(script.chunks) == 6
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_a_signal_to_another_process(handlers, monkeypatch):
    """Ends this one at the same step; its own, which comes later, does nothing."""
    monkeypatch.setattr(loop.processes, "gathered", lambda mine: [mine, True])
    script = Script()
    _, _, reason = script.run(experiment())
    assert reason == "signal" and script.saved == [(2, None)]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_a_run_without_signals_leaves_the_handlers(handlers):
    Script().run(experiment())
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_the_target():
    script = Script()
    _, progress, _ = script.run(experiment(target=Target("accuracy", True, 0.1)))
    assert progress.target_step == 10 and 0 < progress.target_seconds <= progress.seconds


@pytest.mark.parametrize(
    "values, metric, rises", [({"accuracy": 1, "loss": 1}, "accuracy", True), ({"loss": 1}, "loss", False)]
)
def test_which_metric_chooses(values, metric, rises):
    assert loop.monitored(None, values)[:2] == (metric, rises)


def test_the_clock_stands_outside():
    clock = loop.Clock(5.0)
    with clock.running():
        pass
    first = clock.seconds
    assert first >= 5.0 and clock.seconds == first
