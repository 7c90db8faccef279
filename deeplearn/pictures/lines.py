"""Numbers over steps or over time: the curves of a run, and sequences beside what a model makes of them."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deeplearn.pictures import style


class Series(NamedTuple):
    """A line: steps and values, finite ones only."""

    steps: list[float]
    values: list[float]


_NOT_DRAWN = ("step", "seconds", "epoch")
_FIRST, _LAST = ("loss", "accuracy"), ("learning_rate",)
_TRAINING = "training"


def curves(path: str | os.PathLike, records: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Series]]:
    """Draw every metric of a run against its steps, one panel a metric; returns the panels' lines.

    Args:
      path: the PNG to write.
      records: as `logs.read_metrics` gives them: "step", and metrics as "loss" or "validation/loss", of which what
        is before the slash names the line and what is behind it the panel. A value that is not finite leaves a gap.

    Returns:
      {panel: {line: Series}}.

    Raises:
      UserError: the file cannot be written.
    """
    panels: dict[str, dict[str, Series]] = {}
    for record in records:
        for key, value in record.items():
            line, _, panel = key.rpartition("/")
            if panel not in _NOT_DRAWN:
                series = panels.setdefault(panel, {}).setdefault(line or _TRAINING, Series([], []))
                series.steps.append(record["step"])
                series.values.append(value if math.isfinite(value) else math.nan)
    order = [*_FIRST, *(name for name in panels if name not in _FIRST + _LAST), *_LAST]
    panels = {name: panels[name] for name in order if name in panels}
    columns = min(2, len(panels)) or 1
    rows = math.ceil(len(panels) / columns) or 1
    with style.picture(path, style.WIDTH, 2.5 * rows) as figure:
        for number, (name, lines) in enumerate(panels.items()):
            _panel(figure.add_subplot(rows, columns, number + 1), name, lines)
        if not panels:
            figure.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", fontsize=11)
    return panels


def _panel(axes, name: str, lines: dict[str, Series]) -> None:
    colours = dict.fromkeys((_TRAINING, "validation", "test", *lines))
    colours = dict(zip(colours, style.COLOURS * len(colours), strict=False))
    for line, series in lines.items():
        marker = {} if line == _TRAINING and len(series.steps) > 1 else {"marker": "o", "markersize": 3}
        axes.plot(*series, color=colours[line], label=line, **marker)
    values = [value for series in lines.values() for value in series.values if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")
    axes.set_title(name.replace("_", " "))
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    if len(lines) > 1:
        axes.legend()


def sequences(
    path: str | os.PathLike, inputs: np.ndarray, targets: np.ndarray, predictions: np.ndarray, count: int = 6
) -> int:
    """Draw the first `count` sequences with what comes next and what was predicted; returns how many.

    Args:
      path: the PNG to write.
      inputs: (N, T) or (N, T, F), of which the first feature is drawn.
      targets, predictions: (N,), (N, K) or (N, K, 1): the K values from time T on; if K = T those of the times 1
        to T, one ahead of each input.
      count: how many.

    Raises:
      UserError: the file cannot be written.
    """
    inputs, targets, predictions = (
        np.asarray(x, np.float64).reshape(len(x), np.shape(x)[1] if np.ndim(x) > 1 else 1, -1)[:count, :, 0]
        for x in (inputs, targets, predictions)
    )  # (count, T), (count, K), (count, K)
    count, length = inputs.shape
    ahead = targets.shape[1]
    times = np.arange(1, length + 1) if ahead == length else np.arange(length, length + ahead)
    columns = min(3, count)
    rows = math.ceil(count / columns)
    marks = {"linestyle": "-" if ahead > 1 else "none", "markersize": 6}
    with style.picture(path, style.WIDTH, 1.7 * rows + 0.4) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for number, axes in enumerate(grid.flat):
            if number >= count:
                axes.set_axis_off()
                continue
            axes.plot(inputs[number], color=style.FAINT, marker=".", label="input")
            axes.plot(times, targets[number], color=style.BLUE, marker="o", fillstyle="none", label="target", **marks)
            axes.plot(times, predictions[number], color=style.VERMILION, marker="x", label="prediction", **marks)
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in grid[-1]:
            axes.set_xlabel("time")
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=3)
    return count
