"""Grids of images: examples with their labels, and the mistakes that a model is surest of."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deeplearn.pictures import style


class Mistake(NamedTuple):
    """An example that a model gets wrong: its index, class, the class predicted, and with what probability."""

    index: int
    true: int
    predicted: int
    probability: float


def samples(
    path: str | os.PathLike,
    images: np.ndarray,
    labels: Sequence[int],
    classes: Sequence[str],
    columns: int = 8,
) -> list[str]:
    """Draw images in a grid, each under the name of its class; returns the names.

    Args:
      path: the PNG to write.
      images: (N, H, W) or (N, H, W, C), any range: the least of all values is drawn black and the greatest white.
      labels: (N,), int; one that is no class, as an ignored label, is its number.
      classes: the name of each class.
      columns: images a row.

    Raises:
      UserError: the file cannot be written.
    """
    names = [str(classes[label]) if 0 <= label < len(classes) else str(label) for label in map(int, labels)]
    _grid(path, images, [[(name, style.INK)] for name in names], columns)
    return names


def wrong_predictions(
    path: str | os.PathLike,
    images: np.ndarray,
    labels: Sequence[int],
    logits: np.ndarray,
    classes: Sequence[str],
    columns: int = 6,
    rows: int = 4,
) -> list[Mistake]:
    """Draw the mistakes of the highest probability, the surest first, and return them.

    Args:
      path: the PNG to write.
      images: (N, H, W) or (N, H, W, C), as for `samples`.
      labels: (N,), int; examples whose label is no class are left out.
      logits: (N, K), unnormalised log-probabilities.
      classes: the names of the K classes.
      columns, rows: how many at most.

    Raises:
      UserError: the file cannot be written.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, K)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted, surest = probabilities.argmax(axis=1), probabilities.max(axis=1)  # (N,)
    wrong = np.flatnonzero((predicted != labels) & (labels >= 0) & (labels < len(classes)))
    wrong = wrong[np.argsort(-surest[wrong], kind="stable")][: columns * rows]
    mistakes = [Mistake(int(i), int(labels[i]), int(predicted[i]), float(surest[i])) for i in wrong]
    captions = [
        [
            (f"{classes[m.predicted]} ({100 * m.probability:.0f} %)", style.VERMILION),
            (f"is {classes[m.true]}", style.INK),
        ]
        for m in mistakes
    ]
    _grid(path, np.asarray(images)[wrong], captions, columns, nothing=f"no mistakes among {len(labels):,} examples")
    return mistakes


def _grid(path, images, captions, columns: int, nothing: str = "no images") -> None:
    """Images with lines of (text, colour) above each."""
    images = _pixels(images)
    if not len(images):
        with style.picture(path, style.WIDTH, 1) as figure:
            figure.text(0.5, 0.5, nothing, ha="center", va="center", fontsize=11)
        return
    columns = min(columns, len(images))
    rows, lines = math.ceil(len(images) / columns), max(map(len, captions))
    tile, gap, line = min(1.4, style.WIDTH / columns), 0.08, 0.15  # inches
    inside = tile - gap
    picture = inside * images.shape[1] / images.shape[2]
    pitch = picture + line * lines + 0.1
    width, height = tile * columns + gap, pitch * rows + gap
    with style.picture(path, width, height, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
        axes.set_axis_off()
        for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
            left, top = gap + tile * (k % columns), height - pitch * (k // columns) - line * lines - 0.06
            extent = (left, left + inside, top - picture, top)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
            for number, (text, colour) in enumerate(reversed(caption)):
                y = (top + 0.025 + line * number) / height
                middle = (left + inside / 2) / width
                figure.text(middle, y, text, ha="center", va="bottom", color=colour, fontsize=_fit(text, inside))


def _fit(text: str, width: float) -> float:
    """The size in points, at most 8, at which a text is no wider than `width` inches."""
    return min(8.0, 8.0 * width / style.text_width(text, 8)) if text else 8.0


def _pixels(images: np.ndarray) -> np.ndarray:
    """To [0, 1], (N, H, W) or (N, H, W, 3)."""
    images = np.asarray(images, np.float32)
    if images.ndim == 4 and images.shape[-1] not in (3, 4):
        images = images.mean(axis=-1)  # (N, H, W)
    low, high = (images.min(), images.max()) if images.size else (0, 1)
    return (images - low) / (high - low if high > low else 1)
