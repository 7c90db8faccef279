"""What one device does in a compiled program: FLOPs, bytes of memory, bytes of collectives.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs. A condition counts as its
dearest branch.
"""

import functools
import json
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from deeplearn.parallel.hlo import Computations, Instruction, callees, parse, trips

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = (  # which move nothing of their own
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "opt-barrier", "async-update"),
)


class Cost(NamedTuple):
    """Of one device.

    Fields:
      flops: of matrix products and convolutions, an addition and a multiplication two.
      moved: bytes that instructions read from and write to the device's memory.
      counts: collectives that are executed, by kind.
      payload: bytes of their whole arrays, by kind: what is gathered, summed or sent.
      sent: bytes that a device sends for them, along rings, by kind.
      unknown: loops with FLOPs of which only a run knows how often they turn; they count once.
    """

    flops: float = 0.0
    moved: float = 0.0
    counts: Counter = Counter()
    payload: Counter = Counter()
    sent: Counter = Counter()
    unknown: int = 0

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        def more(ours, theirs):
            return Counter({kind: ours[kind] + times * theirs[kind] for kind in (*ours, *theirs)})

        return Cost(
            self.flops + times * other.flops,
            self.moved + times * other.moved,
            *map(more, self[2:5], other[2:5]),
            self.unknown + other.unknown,
        )


def of(text: str) -> Cost:
    """The Cost of a program from its text, `compiled.as_text()`; loops of the entry whose length is unknown are steps.

    >>> import jax
    >>> x, w = jax.ShapeDtypeStruct((8, 16), "float32"), jax.ShapeDtypeStruct((3, 16, 16), "float32")
    >>> layers = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    >>> of(layers.lower(x, w).compile().as_text()).flops == 3 * 2 * 8 * 16 * 16
    True
    """
    computations, entry = parse(text)

    @functools.cache
    def total(name: str, fused: bool = False) -> Cost:
        here = {instruction.name: instruction for instruction in computations[name]}
        found = Cost()
        for each in computations[name]:
            called = [total(callee, fused or each.opcode == "fusion") for callee in callees(each)]
            if each.opcode == "while":
                times, turn = trips(each, computations), called[0].plus(called[1])
                unknown = times is None and turn.flops > 0 and name != entry
                found = found.plus(turn, times or 1).plus(Cost(unknown=int(unknown)))
            elif each.opcode == "conditional":
                found = found.plus(max(called, key=lambda branch: (branch.flops, branch.moved)))
            else:
                found = functools.reduce(Cost.plus, called, found)
            moved = 0.0 if fused else traffic(each, here, computations)
            found = found.plus(Cost(flops(each, here), moved, *collective(each, here, name)))
        return found

    return total(entry)


def flops(instruction: Instruction, here: dict[str, Instruction]) -> float:
    """Those of a product or convolution, or what a kernel says of itself; 0 of all else."""
    if instruction.opcode not in ("dot", "convolution", "custom-call"):
        return 0.0
    shapes = [here[name].type[0].shape for name in instruction.operands[:2] if name in here and here[name].type]
    out = instruction.type[0].shape if instruction.type else ()
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
        return _product(shapes[0], out, contracted.split(","))
    if instruction.opcode == "convolution":
        return _convolution(instruction, *shapes, out)
    if estimate := re.search(r'"cost_estimate":\{"flops":"(\d+)', instruction.rest):
        return float(estimate[1])
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)[1]
    if target.startswith("__cublas"):
        numbers = json.loads(re.search(r'"dot_dimension_numbers":(\{[^}]*\})', instruction.rest)[1])
        return _product(shapes[0], out, numbers["lhs_contracting_dimensions"])
    if target.startswith("__cudnn$conv"):
        gradients = {
            "__cudnn$convBackwardInput": lambda: (out, shapes[1], shapes[0]),
            "__cudnn$convBackwardFilter": lambda: (shapes[0], out, shapes[1]),
        }
        return _convolution(instruction, *gradients.get(target, lambda: (*shapes, out))())
    return 0.0


def _product(left: tuple, out: tuple, contracted) -> float:
    return 2.0 * math.prod(out) * math.prod(left[int(i)] for i in contracted if i != "")


def _convolution(instruction: Instruction, left: tuple, kernel: tuple, out: tuple) -> float:
    """2 B C K and, along each spatial axis, the pairs of an output and a tap that meet an element of the input.

    XLA writes gradients so, and for a TPU products of batches of matrices: most pairs then meet zeros.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest).groups()
    left, kernel, out = (dict(zip(names, n, strict=True)) for names, n in zip(labels, (left, kernel, out), strict=True))
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    window = {name: sizes.split("x") for name, sizes in re.findall(r"(\w+)=([\dx_\-]+)", window[1] if window else "")}
    pairs = 1
    for i, axis in enumerate(sorted(axis for axis in out if axis.isdigit())):
        low = int(re.match(r"-?\d+", window["pad"][i])[0]) if "pad" in window else 0
        steps = (int(window[name][i]) if name in window else 1 for name in ("stride", "lhs_dilate", "rhs_dilate"))
        pairs *= _meetings(left[axis], kernel[axis], out[axis], low, *steps)
    groups = int(instruction.attribute("batch_group_count") or 1)
    return 2.0 * left["b"] / groups * kernel["i"] * kernel["o"] * pairs


@functools.cache
def _meetings(size: int, taps: int, outputs: int, low: int, stride: int, spread: int, dilation: int) -> int:
    at = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * dilation - low
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


def traffic(instruction: Instruction, here: dict[str, Instruction], computations: Computations) -> float:
    """Bytes that an instruction moves to and from the device's memory; of an array it cuts or fills in, the part."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0.0
    read = [_far(here[name]) if name in here else 0 for name in instruction.operands]
    if opcode.endswith("-start"):
        return float(sum(read) + _far(instruction, 1)) if opcode == "copy-start" else 0.0
    written = _far(instruction)
    body = computations[instruction.attribute("calls")] if opcode == "fusion" else []
    for each in body:
        users = [user for user in body if each.name in user.operands]
        if each.opcode == "parameter" and users and all(user.operands[0] == each.name for user in users):
            kinds = {user.opcode for user in users}
            if kinds <= {"dynamic-slice", "gather"}:
                read[int(each.inside)] = min(read[int(each.inside)], sum(map(_far, users)))
            elif kinds == {"dynamic-update-slice"}:
                read[int(each.inside)] = 0
    for each in body or [instruction]:
        if each.opcode == "dynamic-update-slice" and 0 < _far(each) <= written:  # in place
            part = {inner.name: inner for inner in body}.get(each.operands[1]) or here[each.operands[1]]
            written += part.type[0].size - each.type[0].size
    if opcode in ("dynamic-slice", "gather"):
        read[0] = min(read[0], written)
    if opcode == "dynamic-update-slice":
        read[0] = 0
    return float(sum(read) + written)


def _far(instruction: Instruction, first: int | None = None) -> int:
    """Bytes of its arrays, or of the first of them, that lie in the device's memory."""
    return sum(array.size for array in instruction.type[:first] if not array.near)


def collective(instruction: Instruction, here: dict[str, Instruction], computation: str) -> tuple[Counter, ...]:
    """A collective's count, payload and what a device sends, by kind; nothing of all else.

    Of n devices in a ring each sends (n - 1) / n of an array that is gathered, scattered or exchanged, twice that of
    one that is summed for all (Chan et al. 2007, Collective communication: theory, practice, and experience).
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return Counter(), Counter(), Counter()
    given = sum(array.size for name in instruction.operands for array in here[name].type)
    n = group_size(instruction.rest)
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):  # as TPUs' compiler writes it
        kind = "reduce-scatter"
    payload = given * n if kind == "all-gather" else given
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
    return Counter({kind: 1}), Counter({kind: payload}), Counter({kind: payload * share})


def group_size(attributes: str) -> int:
    """How many devices take part in a collective together, in any of XLA's ways to say so.

    >>> group_size("replica_groups={{0,1},{2,3}}"), group_size("replica_groups=[2,4]<=[8]")
    (2, 4)
    >>> group_size("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={1}")
    4
    """
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if listed := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(listed[1])
    groups = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(groups[1].split(",")) if groups else 1
