"""The host's side of a run: chunk after chunk, evaluations, checkpoints, and what to do when something ends it."""

import math
import signal
import threading
import time
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from deeplearn.errors import UserError
from deeplearn.experiment import Experiment, Target
from deeplearn.optimizers import current_learning_rate
from deeplearn.parallel import processes


class Progress(NamedTuple):
    """What the host remembers of a run; it is saved with each checkpoint, as JSON.

    Fields:
      seconds: the clock, which runs from before the first compile; it stands during evaluation and saving.
      best: the best value so far of the metric that chooses the checkpoint, None before the first finite one.
      best_step: its step.
      stale: evaluations since then.
      target_step, target_seconds: when validation first reached the target, None before.
    """

    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    target_step: int | None = None
    target_seconds: float | None = None


class Hooks(NamedTuple):
    """What a run does beside computing; every one a function.

    Fields:
      log: `(step, {name: number})`, the means over the steps since the last line, and what an evaluation found.
      save: `(step, state, progress, score)`, asynchronously; the score, larger is better, is None unless this step is
        the best so far. Returns False, having saved nothing, if the state is not finite.
      tick: `(step, {name: number})`, after every chunk, for a progress bar.
    """

    log: Any
    save: Any
    tick: Any


class Diverged(UserError):
    """A loss or a parameter is no longer a number."""


class Clock:
    """Seconds of training: runs inside `running()`, and nowhere else."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    @contextmanager
    def running(self):
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start


@contextmanager
def stop_signals():
    """A threading.Event that SIGTERM or the first Ctrl-C sets; a second Ctrl-C interrupts as usual.

    Once it is set SIGTERM stays without effect: whoever is told to end again is ending.
    """
    event = threading.Event()

    def handler(number, frame):
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        if event.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def next_stop(experiment: Experiment, step: int) -> int:
    """The step at which the chunk that starts at `step` ends.

    A function of the config and the step alone, so that a resumed run stops where an unbroken one does.
    """
    periods = (experiment.log_every, experiment.eval_every, experiment.checkpoint_every)
    return min(experiment.steps, *((step // period + 1) * period for period in periods))


def monitored(target: Target | None, values: dict) -> Target:
    """The validation metric that chooses the best checkpoint: the target's, else accuracy, else the loss."""
    if target is not None:
        return target
    return Target("accuracy", True, math.inf) if "accuracy" in values else Target("loss", False, -math.inf)


def judge(goal: Target, progress: Progress, step: int, values: dict) -> Progress:
    """The progress after an evaluation at `step`; a value that is not finite is never the best, and reaches nothing."""
    value = float(values[goal.metric])
    none = progress.best is None or not math.isfinite(progress.best)  # older progress may hold NaN
    if math.isfinite(value) and (none or (value > progress.best if goal.rises else value < progress.best)):
        progress = progress._replace(best=value, best_step=step, stale=0)
    else:
        progress = progress._replace(stale=progress.stale + 1)
    if progress.target_step is None and math.isfinite(value) and goal.reached(value):
        progress = progress._replace(target_step=step, target_seconds=progress.seconds)
    return progress


def scalars(values: dict) -> dict[str, float]:
    """The metrics that are numbers; arrays such as a confusion matrix belong in the final report."""
    return {name: float(value) for name, value in values.items() if jax.numpy.ndim(value) == 0}


def finished(experiment: Experiment, step: int, progress: Progress) -> bool:
    """Whether the budget is spent, or patience."""
    patience = experiment.config.patience
    return step >= experiment.steps or bool(patience and progress.stale >= patience)


def kept(step: int) -> str:
    return f"the checkpoint of step {step} is kept" if step else "nothing was saved yet"


def train(
    experiment: Experiment, program, state, progress: Progress, hooks: Hooks, signalled: threading.Event
) -> tuple[Any, Progress, str]:
    """Run from `state` to the end of the budget, or of patience ("early"), or to a signal to any of the processes.

    `signalled`: from `stop_signals`; set on every process when it was on one.

    Returns the state, the progress, and why it ended: "done", "early" or "signal". Raises Diverged, before anything of
    the spoilt state is saved, when a loss or a gradient is not finite.
    """
    clock = Clock(progress.seconds)
    step = saved = int(jax.device_get(state.step))
    while not finished(experiment, step, progress):
        stop = next_stop(experiment, step)
        with clock.running():
            data = program.feed.data(step, stop - step)
            state, metrics = program.chunk(state, data, stop - step)
            metrics = jax.device_get(metrics)
        record = {name: float(value) for name, value in metrics.items()}
        if not all(math.isfinite(value) for value in record.values()):
            raise Diverged(
                f"the loss is not finite between steps {step} and {stop}; {kept(saved)}: "
                "a lower --config.learning_rate or --config.clip_norm=1 may help"
            )
        step, progress = stop, progress._replace(seconds=clock.seconds)
        rate = jax.device_get(current_learning_rate(state.opt_state))
        record |= {"learning_rate": float(rate), "seconds": clock.seconds}
        hooks.tick(step, record)

        due = step % experiment.checkpoint_every == 0 or step == experiment.steps
        if step % experiment.eval_every == 0 or step == experiment.steps:
            values = jax.device_get(program.evaluate(state, "validation"))
            goal = monitored(experiment.target, values)
            progress = judge(goal, progress, step, values)
            due |= progress.best_step == step
            record |= {f"validation/{name}": value for name, value in scalars(values).items()}
        hooks.log(step, record)
        done = finished(experiment, step, progress)
        stopped = any(processes.gathered(signalled.is_set()))  # by a signal to any process, for all at this step
        if due or done or stopped:
            score = None
            if progress.best_step == step:
                score = progress.best if goal.rises else -progress.best
            if not hooks.save(step, state, progress, score):
                raise Diverged(f"a parameter is not finite at step {step}; {kept(saved)}")
            saved = step
        if stopped and not done:
            signalled.set()
            return state, progress, "signal"
    return state, progress, "done" if step >= experiment.steps else "early"
