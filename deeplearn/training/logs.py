"""What a run reports while it trains: metrics.jsonl, TensorBoard events, and a bar or lines of progress."""

import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from deeplearn.files import locate, mirror, read_bytes, replacing, unreadable, writing
from deeplearn.training import metric_lines

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


class Logs(NamedTuple):
    """Open log files.

    Fields:
      write: `(step, {name: number})`, one record, in the system's hands when it returns.
      close: `()`.
      flush: `()`; what was written is in the workdir when it returns, also if that is in a bucket.
    """

    write: Callable[[int, dict[str, Any]], None]
    close: Callable[[], None]
    flush: Callable[[], None]


NO_LOGS = Logs(lambda step, scalars: None, lambda: None, lambda: None)  # of all processes but the first


def open_logs(workdir: str | os.PathLike, resume_step: int | None = None) -> Logs:
    """Open `workdir`/metrics.jsonl and `workdir`/tensorboard to append to.

    A record is one JSON object on one line, {"step": 200, "loss": 0.25, "crc": "3b11ff1c"}; see metric_lines.py.

    Args:
      workdir: an existing directory.
      resume_step: the step of the checkpoint that the run goes on from; what an earlier attempt wrote of later
        steps is dropped, in one atomic replacement. None: the run starts at step 0, and what an earlier attempt wrote
        is kept as metrics.jsonl.1 (or .2, .3, the first that is free).

    Raises:
      UserError: metrics.jsonl cannot be read, or is damaged; then nothing was changed. Or the files cannot be
        written; so too from `write`, when the disk is full.
    """
    directory, push = mirror(workdir, [METRICS])
    path = directory / METRICS
    data = _content(path)
    last = -math.inf if resume_step is None else resume_step
    records = metric_lines.decode(locate(workdir) / METRICS, data)
    kept = b"".join(line for line, record in records if record["step"] <= last)
    if resume_step is None and records:
        with replacing(directory / _free_name(locate(workdir))) as temporary:
            temporary.write_bytes(data)
    if kept != data:
        with replacing(path) as temporary:
            temporary.write_bytes(kept)
    with writing(path):
        file = path.open("a", encoding="utf-8")
    events = open_events(path.parent / EVENTS, 0 if resume_step is None else resume_step + 1)

    def write(step: int, scalars: dict[str, Any]) -> None:
        numbers = {name: float(value) for name, value in scalars.items()}
        with writing(path):
            file.write(metric_lines.encode(step, numbers))
            file.flush()
        events.write(int(step), numbers)
        push()

    def close() -> None:
        events.close()
        with writing(path):
            file.close()
        push(now=True)

    return Logs(write, close, lambda: push(now=True))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The records of `workdir`/metrics.jsonl, {"step": 200, "loss": 0.25}; none if there is no such file.

    A last line that a kill cut off is left out.

    Raises:
      UserError: the file cannot be read, or another line is damaged.
    """
    path = locate(workdir) / METRICS
    return [record for _, record in metric_lines.decode(path, _content(path))]


def _content(path: pathlib.Path) -> bytes:
    """What is in a file; nothing if it does not exist."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except Exception as error:  # the clients of buckets have no base class for what can go wrong
        raise unreadable(path, error, "restore or remove it, or start again when it can be read") from error


def _free_name(workdir: pathlib.Path) -> str:
    """The first of metrics.jsonl.1, metrics.jsonl.2, ... that does not exist."""
    names = (f"{METRICS}.{number}" for number in itertools.count(1))
    return next(name for name in names if not (workdir / name).exists())


def open_events(directory: pathlib.Path, purge_step: int = 0) -> Logs:
    """TensorBoard's event file, written at once and not, as SummaryWriter does, by a thread whose errors get lost.

    `purge_step`: what is there already of this step and later ones is hidden.
    """
    absent = sys.modules.setdefault("torch", None) is None
    try:  # tensorboardX imports PyTorch where it is installed, for more than a second, and needs it for graphs alone
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
    finally:
        if absent:
            del sys.modules["torch"]

    with writing(directory):
        directory.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names, which begin with the time in seconds.
        writer = EventsWriter(str(directory / "events"), filename_suffix=f".{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)  # hides what is there of this step and those behind it
        writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))
        writer.flush()

    def write(step: int, numbers: dict[str, float]) -> None:
        with writing(directory):
            for name, value in numbers.items():
                event = Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value))
                writer.write_event(event)
            writer.flush()

    def close() -> None:
        with writing(directory):
            writer.close()

    return Logs(write, close, lambda: None)


class Progress(NamedTuple):
    """How far a run is: a bar in a terminal, lines elsewhere.

    Fields:
      tick: `(step, {name: number})`, as often as one likes. Shows `loss`, `learning_rate`, and, from the training
        clock `seconds`, examples a second and the time left.
      note: `(step, {name: number})`, a line of its own with everything, for evaluations.
      close: `()`.
    """

    tick: Callable[[int, dict[str, Any]], None]
    note: Callable[[int, dict[str, Any]], None]
    close: Callable[[], None]


NO_PROGRESS = Progress(lambda step, scalars: None, lambda step, scalars: None, lambda: None)


def progress(
    total_steps: int,
    batch_size: int,
    initial_step: int = 0,
    stream: TextIO | None = None,
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Progress of a run on `stream`, standard error by default.

    Args:
      total_steps: where it ends.
      batch_size: examples a step.
      initial_step: where it begins.
      stream: a terminal gets a bar, another stream a line at most every `every` seconds, and the last one.
      every: seconds.
      clock: seconds, in place of a `seconds` in what `tick` is told, and to space the lines.
    """
    stream = stream or sys.stderr
    rate = _rate()

    def describe(step: int, scalars: dict[str, Any]) -> str:
        speed = rate(step, float(scalars.get("seconds", clock())))
        parts = [f"loss {float(scalars['loss']):.4g}"] if "loss" in scalars else []
        parts += [f"lr {float(scalars['learning_rate']):.3g}"] if "learning_rate" in scalars else []
        if speed:
            parts += [f"{speed * batch_size:,.0f} examples/s", f"{_time((total_steps - step) / speed)} left"]
        return "  ".join(parts)

    def line(step: int, text: str) -> str:
        return f"step {step:>{len(str(total_steps))}}/{total_steps}  {text}"

    def everything(scalars: dict[str, Any]) -> str:
        return "  ".join(f"{name} {float(value):.4g}" for name, value in scalars.items())

    if stream.isatty():
        from tqdm import tqdm

        form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {desc}"
        bar = tqdm(total=total_steps, initial=initial_step, file=stream, bar_format=form, dynamic_ncols=True)

        def tick(step: int, scalars: dict[str, Any]) -> None:
            bar.set_description_str(describe(step, scalars), refresh=False)
            bar.update(step - bar.n)

        def note(step: int, scalars: dict[str, Any]) -> None:
            bar.write(line(step, everything(scalars)), file=stream)

        return Progress(tick, note, bar.close)

    printed = -math.inf

    def say(step: int, scalars: dict[str, Any]) -> None:
        nonlocal printed
        text = describe(step, scalars)
        if clock() - printed >= every or step >= total_steps:
            printed = clock()
            print(line(step, text), file=stream, flush=True)

    def note_line(step: int, scalars: dict[str, Any]) -> None:
        print(line(step, everything(scalars)), file=stream, flush=True)

    return Progress(say, note_line, lambda: None)


def _rate(smoothing: float = 0.3) -> Callable[[int, float], float | None]:
    """Steps a second, an exponential average of what lies between calls; None until there have been two."""
    previous: tuple[int, float] | None = None
    average: float | None = None

    def update(step: int, seconds: float) -> float | None:
        nonlocal previous, average
        if previous and step > previous[0] and seconds > previous[1]:
            current = (step - previous[0]) / (seconds - previous[1])
            average = current if average is None else smoothing * current + (1 - smoothing) * average
        previous = (step, seconds)
        return average

    return update


def _time(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _time(59.6), _time(3599), _time(7322)
    ('1:00', '59:59', '2:02:02')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
