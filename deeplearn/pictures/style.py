"""What the pictures have in common: size, type, colours, and how they get to disk.

matplotlib is imported when a picture is drawn, and without pyplot: there is no global state to leave behind.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from deeplearn.files import replacing

# Okabe and Ito 2008, Color universal design: apart for every kind of colour vision.
BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY)
INK, FAINT, PAPER = "#222222", "#777777", "#FFFFFF"

WIDTH = 7.0  # inches, at DOTS an inch a little more than a README's column
DOTS = 160

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "figure.facecolor": PAPER,
    "image.interpolation": "nearest",
}


@contextlib.contextmanager
def picture(path: str | os.PathLike, width: float, height: float, layout: str | None = "constrained") -> Iterator[Any]:
    """A matplotlib Figure of `width` x `height` inches, written to the PNG at `path` at the end of the block.

    Raises:
      UserError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), replacing(path) as temporary:
        matplotlib.rcParams.update(matplotlib.rcParamsDefault | _SETTINGS)
        figure = Figure(figsize=(width, height), layout=layout)
        yield figure
        figure.savefig(temporary, dpi=DOTS)


def text_width(text: str, points: float, weight: str = "normal") -> float:
    """The width of a line of text in inches.

    >>> 0.4 < text_width("MMMM", 10) < 0.6
    True
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text:
        return 0.0
    path = TextPath((0, 0), text, prop=FontProperties(size=points, weight=weight))
    return 1.04 * float(path.get_extents().x1) / 72  # what hinting adds on the screen
