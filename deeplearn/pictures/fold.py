"""Networks as lists of boxes, with repeated stretches each shown once."""

from typing import NamedTuple


class Box(NamedTuple):
    """A layer, or a function between layers.

    Fields:
      kind: "input", "layer" (a module) or "function".
      label: the module's class, or the function's name.
      detail: what there is to say beside it, as "3×3".
      name: the module's path; of a function, that of the module whose code calls it.
      shape: of what comes out, without the batch.
      parameters: how many numbers it learns; shared ones count where they are used first.
      inputs: the positions, in the list of boxes, of those whose output goes in.
      repeat: how many of these, one after another, this one stands for.
      group: a number that boxes repeated together have in common, 0 for those that are not repeated.
    """

    kind: str
    label: str
    detail: str
    name: str
    shape: tuple[int, ...]
    parameters: int
    inputs: tuple[int, ...]
    repeat: int = 1
    group: int = 0


def fold(boxes: list[Box]) -> list[Box]:
    """The same network with each run of equal stretches as one, its `repeat` multiplied.

    A stretch is folded only if, but for its last box, it is of use to nothing outside, and, but for the box before
    it, uses nothing outside. Of several ways to cut a run, the one that follows the modules is taken.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from deeplearn.pictures.trace import trace
    >>> boxes = trace(nn.Sequential([nn.Dense(4) for _ in range(3)] + [nn.tanh]), jnp.zeros((1, 4)))
    >>> [(box.label, box.repeat) for box in fold(boxes)]
    [('input', 1), ('Dense', 3), ('tanh', 1)]
    """
    start = 0
    while start < len(boxes):
        lengths = range(1, (len(boxes) - start) // 2 + 1)
        saved, length = max(((n * (_repeats(boxes, start, n) - 1), n) for n in lengths), default=(0, 0))
        if saved >= 2:
            shifts = range(start, start + length)
            start = min(shifts, key=lambda s: (-_repeats(boxes, s, length), _modules(boxes[s : s + length])))
            boxes = _fold(boxes, start, length, _repeats(boxes, start, length))
            start += length
        else:
            start += 1
    return boxes


def _modules(stretch: list[Box]) -> tuple[int, bool]:
    """How many modules the stretch's boxes are in, and whether it begins with a function."""
    inside = {box.name.rpartition("/")[0] if box.kind == "layer" else box.name for box in stretch}
    return len(inside), stretch[0].kind == "function"


def _repeats(boxes: list[Box], start: int, length: int) -> int:
    """How often the stretch of `length` boxes from `start` on comes, one after another, and can be folded."""

    def look(i: int) -> Box:
        return boxes[i]._replace(name="", inputs=tuple(i - j for j in boxes[i].inputs))

    def used_outside(end: int) -> bool:
        return any(start <= j < end - 1 for box in boxes[end:] for j in box.inputs)

    block = range(start, start + length)
    if block[-1] >= len(boxes) or any(boxes[i].group or min(boxes[i].inputs, default=0) < start - 1 for i in block):
        return 1
    repeats, last = 1, len(boxes) - length
    while start + repeats * length <= last and all(look(i) == look(i + repeats * length) for i in block):
        repeats += 1
    while repeats > 1 and used_outside(start + repeats * length):
        repeats -= 1
    return repeats


def _fold(boxes: list[Box], start: int, length: int, repeats: int) -> list[Box]:
    """The boxes with only the first of those stretches."""
    removed = length * (repeats - 1)
    group = 1 + max(box.group for box in boxes)
    block = [box._replace(repeat=repeats, group=group) for box in boxes[start : start + length]]
    rest = [
        box._replace(inputs=tuple(j - removed if j >= start + length else j for j in box.inputs))
        for box in boxes[start + length + removed :]
    ]
    return boxes[:start] + block + rest
