"""A compiled program as text, read into its instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Array(NamedTuple):
    """An array in a type; near: whether it lies in a memory on the chip, as a TPU's VMEM."""

    dtype: str
    shape: tuple[int, ...]
    near: bool

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * bits(self.dtype) // 8


class Instruction(NamedTuple):
    """One line.

    Fields:
      type: the arrays of its result, of nested tuples all in order.
      operands: the names of those in the same computation.
      inside: what its parentheses hold: of a constant the value, of a parameter the number.
      rest: its attributes.
    """

    name: str
    type: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str
    rest: str

    def attribute(self, name: str) -> str | None:
        """The one of this name, of a single word; a computation's without its sign."""
        found = re.search(rf"\b{name}=%?([^,\s]+)", self.rest)
        return found and found[1]


Computations = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Computations, str]:
    """The instructions of each computation of a program, `compiled.as_text()`, and the name of the first to run."""
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.\-]+) [({]", line)):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            kind, after = _cut(line[match.end() :])
            opcode, _, after = after.strip().partition("(")
            inside, rest = _cut("(" + after)
            operands = tuple(re.findall(r"%?([\w.\-]+)(?=[,)])", inside))
            current.append(Instruction(match[1], tuple(arrays(kind)), opcode, operands, inside[1:-1], rest))
    return computations, entry


def arrays(kind: str) -> Iterator[Array]:
    """The arrays of a type.

    >>> [array.size for array in arrays("(f32[2,3]{1,0}, (bf16[8]{0:T(128)S(1)}, pred[]))")]
    [24, 16, 1]
    """
    for dtype, shape, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", kind):
        yield Array(dtype, tuple(map(int, filter(None, shape.split(",")))), bool(re.search(r"S\([1-4]\)", layout)))


def bits(dtype: str) -> int:
    """Those of an element; of what is none, such as a token, 0.

    >>> bits("f8e4m3fn"), bits("pred"), bits("token")
    (8, 8, 0)
    """
    found = re.match(r"[a-z]+(\d+)", dtype)
    return 8 if dtype == "pred" else int(found[1]) if found else 0


def callees(instruction: Instruction) -> list[str]:
    """The computations that run where this instruction does, a loop's body first; not what combines two scalars."""
    if instruction.opcode == "while":
        return [instruction.attribute("body"), instruction.attribute("condition")]
    if instruction.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        pair = re.findall(r"(?:true|false)_computation=([%\w.\-]+)", instruction.rest)
        return [name.strip().removeprefix("%") for name in (listed[1].split(",") if listed else pair)]
    named = {"fusion": "calls", "async-start": "calls", "call": "to_apply"}.get(instruction.opcode)
    return [instruction.attribute(named)] if named else []


def trips(loop: Instruction, computations: Computations) -> int | None:
    """How often a loop runs: as XLA notes, or by the constant that its counter, from 0, stays below; None: unknown."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted[1])
    condition = list(computations[loop.attribute("condition")])
    condition += [each for fusion in condition for name in callees(fusion) for each in computations[name]]
    compared = [each for each in condition if each.opcode == "compare" and "direction=LT" in each.rest]
    limits = [each for each in condition if each.opcode == "constant" and each.type[0].dtype in ("s32", "u32")]
    return int(limits[0].inside) if len(compared) == len(limits) == 1 else None


def _cut(text: str) -> tuple[str, str]:
    """What stands in parentheses at the beginning, or the first word, and what follows it."""
    if not text.startswith("("):
        first, _, rest = text.partition(" ")
        return first, rest
    depth = 0
    for at, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return text[: at + 1], text[at + 1 :]
    raise ValueError(f"parentheses do not close: {text[:80]}")
