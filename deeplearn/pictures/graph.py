"""The network as a graph: layers from top to bottom, in columns, with arrows along the data."""

import bisect
import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from deeplearn.pictures import style
from deeplearn.pictures.fold import Box, fold

# Inches.
BOX_WIDTH = 2.75
LAYER, FUNCTION = 0.46, 0.25  # heights
GAP = 0.17  # between boxes
LANE = 0.13  # between the vertical lines of two skip connections
MARGIN = 0.25
TITLE = 0.45
COLUMN = 12.0  # the height that a column may have before there is another

_FILL = {"input": "#FFFFFF", "layer": "#D6E8F4", "function": "#F2F2F2", "join": "#FBE3B9"}
_EDGE = {"input": style.FAINT, "layer": style.BLUE, "function": "#BBBBBB", "join": style.ORANGE}


class Place(NamedTuple):
    """Where a box is: its column, left edge, and top, downwards, in inches."""

    column: int
    x: float
    y: float
    height: float


def network(path: str | os.PathLike, module: Any, *inputs: Any) -> list[Box]:
    """Draw `module` applied to `inputs` to the PNG at `path`, and return the boxes in it.

    A box holds the layer's type, its path in the parameters, the shape of its output without the batch, and its
    number of parameters. Repeated blocks are drawn once, in a frame that says how often they come.

    Args:
      path: where to.
      module: a Flax linen module.
      inputs: example arrays or jax.ShapeDtypeStruct, (B, ...) each.

    Raises:
      UserError: the file cannot be written.
    """
    from deeplearn.pictures.trace import trace

    boxes = fold(trace(module, *inputs))
    total = sum(box.parameters * box.repeat for box in boxes)
    columns, lanes = _columns(boxes), _lanes(boxes)
    crossing = sum(columns[j] != columns[i] for j, i in lanes)
    pitch = BOX_WIDTH + LANE * (1 + max(lanes.values(), default=-1)) + 0.45 + 0.06 * crossing
    places = _places(boxes, columns, pitch)
    ways = list(_ways(boxes, places, lanes))
    width = 2 * MARGIN + (1 + max(columns)) * pitch - 0.35 - 0.06 * crossing
    height = MARGIN + max([p.y + p.height for p in places] + [y for corners, _ in ways for _, y in corners])
    with style.picture(path, width, height, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        title = f"{type(module).__name__}    {total:,} parameters"
        points = min(11, 11 * (width - 2 * MARGIN) / style.text_width(title, 11, "bold"))
        axes.text(MARGIN, MARGIN, title, fontsize=points, weight="bold", va="center")
        _draw_frames(axes, boxes, places, lanes)
        for corners, passes in ways:
            _draw_arrow(axes, corners, style.VERMILION if passes else style.INK)
        for box, place in zip(boxes, places, strict=True):
            _draw_box(axes, box, place, [boxes[j].shape for j in box.inputs])
    return boxes


def _is_join(box: Box) -> bool:
    return box.kind == "function" and len(box.inputs) > 1


def _height(box: Box) -> float:
    return LAYER if box.kind == "layer" else FUNCTION


def _columns(boxes: list[Box]) -> list[int]:
    """The column of each box: the fewest columns that are short enough, and then the shortest.

    A column ends best where nothing but the arrow to the next box leaves it: others count as inches of height.
    """
    n = len(boxes)
    tops = list(itertools.accumulate((_height(box) + GAP for box in boxes), initial=0.0))

    def cost(cut: int) -> float:
        skips = [j for i in range(cut + 1, n) for j in boxes[i].inputs if j < cut]
        framed = boxes[cut].group > 0 and boxes[cut].group == boxes[cut - 1].group
        return min(4.0, sum(0.5 if j == cut - 1 else 2.0 for j in skips)) + 4.0 * framed

    costs = [0.0, *map(cost, range(1, n)), 0.0]
    best = [(tops[i] + costs[i], (0,)) for i in range(n + 1)]  # the longest column of boxes[:i], and their starts
    candidates = [best[n]]
    while candidates[-1][0] > COLUMN and len(candidates) < 6:
        best = [
            min((max(best[j][0], tops[i] - tops[j] + costs[i]), (*best[j][1], j)) for j in range(i + 1))
            for i in range(n + 1)
        ]
        candidates.append(best[n])
    height, starts = candidates[-1] if candidates[-1][0] <= COLUMN else min(candidates)
    return [bisect.bisect_right(starts, i) - 1 for i in range(n)]


def _lanes(boxes: list[Box]) -> dict[tuple[int, int], int]:
    """A lane beside the boxes for each arrow that passes others, the innermost that is free."""
    skips = sorted(((j, i) for i, box in enumerate(boxes) for j in box.inputs if j != i - 1), key=lambda s: s[1] - s[0])
    lanes: dict[tuple[int, int], int] = {}
    for j, i in skips:
        taken = {lane for (a, b), lane in lanes.items() if a <= i and j <= b}
        lanes[j, i] = next(lane for lane in range(len(skips)) if lane not in taken)
    return lanes


def _places(boxes: list[Box], columns: list[int], pitch: float) -> list[Place]:
    places: list[Place] = []
    for i, box in enumerate(boxes):
        first = i == 0 or columns[i] != columns[i - 1]
        y = TITLE + GAP if first else places[-1].y + places[-1].height + GAP
        if box.group and (first or boxes[i - 1].group != box.group):
            y += 0.12  # room for the frame
        elif not first and boxes[i - 1].group and boxes[i - 1].group != box.group:
            y += 0.12
        places.append(Place(columns[i], MARGIN + columns[i] * pitch, y, _height(box)))
    return places


def _side(box: Box, place: Place) -> tuple[float, float]:
    """The left and right edge of a box; those that learn nothing are narrower."""
    inset = 0.4 if box.kind != "layer" and not box.parameters else 0.0
    return place.x + inset, place.x + BOX_WIDTH - inset


def _ways(boxes: list[Box], places: list[Place], lanes) -> Iterator[tuple[list[tuple[float, float]], bool]]:
    """The corners of each arrow, and whether it passes other boxes.

    To the next box it goes straight down, or under the column and over the next one. To others it goes beside the
    boxes in its lane, or, to another column, down that lane, under the columns, and up on the left of the box.
    """
    crossed = 0
    for i, end in enumerate(places):
        for j in boxes[i].inputs:
            start, middle = places[j], BOX_WIDTH / 2
            bottom = start.y + start.height
            beside = start.x + BOX_WIDTH + LANE * (1 + lanes.get((j, i), 0))
            out, into = start.y + 0.7 * start.height, end.y + 0.3 * end.height
            if (j, i) not in lanes and start.column == end.column:
                yield [(start.x + middle, bottom), (end.x + middle, end.y)], False
            elif (j, i) not in lanes:
                turn, floor, over = end.x - 0.15, bottom + (0.2 if boxes[j].group else 0.1), end.y - 0.12
                corners = [(start.x + middle, bottom), (start.x + middle, floor), (turn, floor)]
                yield [*corners, (turn, over), (end.x + middle, over), (end.x + middle, end.y)], False
            elif start.column == end.column:
                corners = [(_side(boxes[j], start)[1], out), (beside, out), (beside, into)]
                yield [*corners, (_side(boxes[i], end)[1], into)], True
            else:
                between = [p.y + p.height for p in places if start.column <= p.column < end.column]
                floor = max(between) + 0.27 + 0.06 * crossed
                turn = end.x - 0.21 - 0.06 * crossed
                crossed += 1
                corners = [(_side(boxes[j], start)[1], out), (beside, out), (beside, floor), (turn, floor)]
                yield [*corners, (turn, into), (_side(boxes[i], end)[0], into)], True


# Drawing


def _draw_box(axes, box: Box, place: Place, shapes: list[tuple[int, ...]]) -> None:
    from matplotlib.patches import FancyBboxPatch

    look = "join" if _is_join(box) else box.kind
    left, right = _side(box, place)
    outline = "round,pad=0,rounding_size=0.06"
    colours = {"facecolor": _FILL[look], "edgecolor": _EDGE[look]}
    size = (right - left, place.height)
    axes.add_patch(FancyBboxPatch((left, place.y), *size, boxstyle=outline, linewidth=1, zorder=3, **colours))

    shape = " × ".join(map(str, box.shape)) or "one number"
    count = f"{box.parameters:,} parameters" if box.parameters else ""
    left, right, space = left + 0.09, right - 0.09, right - left - 0.18
    if box.kind != "layer":
        line = place.y + place.height / 2
        news = [shape] * (box.shape not in shapes) + [count] * bool(count)
        write(axes, left, line, [(box.label, 9, "normal", style.INK)])
        write(axes, right, line, [("   ".join(news), 8, "normal", style.INK)], "right")
        return
    top, bottom = place.y + 0.145, place.y + 0.33
    points = 9.0
    while style.text_width(box.label, points, "bold") + style.text_width(box.detail, points) + 0.1 > space:
        points -= 0.5
    used = write(axes, left, top, [(box.label, points, "bold", style.INK), (box.detail, points, "normal", style.INK)])
    write(axes, right, top, [(_shorten(box.name, space - used - 0.1), 7, "normal", style.FAINT)], "right")
    write(axes, left, bottom, [(shape, 8, "normal", style.INK)])
    write(axes, right, bottom, [(count, 8, "normal", style.INK)], "right")


def write(axes, x: float, y: float, texts, align: str = "left") -> float:
    """Write (text, points, weight, colour) one after another from x on, about y; the width in inches."""
    used = 0.0
    for text, points, weight, colour in texts:
        axes.text(x + used, y, text, fontsize=points, weight=weight, color=colour, ha=align, va="center", zorder=4)
        used += style.text_width(text, points, weight) + 0.06
    return used


def _shorten(name: str, width: float) -> str:
    """The end of a path that fits, by whole parts; nothing if not even the last does."""
    parts = name.split("/")
    tails = [name] + ["…/" + "/".join(parts[k:]) for k in range(1, len(parts))]
    return next((tail for tail in tails if style.text_width(tail, 7) <= width), "")


def _draw_arrow(axes, points: list[tuple[float, float]], colour: str) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    arrow = {"arrowstyle": "-|>,head_length=3,head_width=1.8", "joinstyle": "round", "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(path=Path(points), color=colour, linewidth=1, zorder=2, **arrow))


def _draw_frames(axes, boxes: list[Box], places: list[Place], lanes) -> None:
    """A frame around each repeated stretch."""
    from matplotlib.patches import FancyBboxPatch

    for group in {box.group for box in boxes} - {0}:
        members = [i for i, box in enumerate(boxes) if box.group == group]
        first, last = places[members[0]], places[members[-1]]
        inner = [lane for (j, i), lane in lanes.items() if {i, j} & {*members}]
        right = first.x + BOX_WIDTH + LANE * (2 + max(inner, default=-1))
        bottom = last.y + last.height + 0.1
        corner, size = (first.x - 0.1, first.y - 0.1), (right - first.x + 0.1, bottom - first.y + 0.1)
        colours = {"facecolor": "#FAFAFA", "edgecolor": style.FAINT, "linestyle": (0, (3, 2))}
        outline = "round,pad=0,rounding_size=0.08"
        axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=outline, linewidth=0.9, zorder=1, **colours))
        label = f"× {boxes[members[0]].repeat}"
        box = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 1.5}
        axes.text(first.x + 0.05, bottom, label, weight="bold", ha="left", va="center", bbox=box, zorder=4)
