"""A Flax module as a list of layers and the data that flows between them.

The module is traced once, without computing anything. Each call of a submodule runs in a named scope of its own, so
that every equation of the jaxpr tells the call that it belongs to. Equations of a module that has submodules are the
plain functions between those (activations, pooling, additions): they take the name of the function that the module's
code called, which their tracebacks hold.
"""

import inspect
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax
from jax.extend.core import Literal

from deeplearn.pictures.fold import Box


@jax.disable_jit(False)  # without functions of its own an operation is nothing that could be drawn
def trace(module: nn.Module, *inputs: Any) -> list[Box]:
    """The boxes of `module` applied to `inputs`, in the order of the calls.

    Args:
      module: any module; `train=False` is passed on if its `__call__` takes that.
      inputs: example arrays or jax.ShapeDtypeStruct, (B, ...) each.

    >>> boxes = trace(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), jax.numpy.zeros((1, 4)))
    >>> [(box.label, box.shape, box.parameters, box.inputs) for box in boxes]
    [('input', (4,), 0, ()), ('Dense', (8,), 40, (0,)), ('relu', (8,), 0, (1,)), ('Dense', (2,), 18, (2,))]
    """
    options = {"train": False} if "train" in inspect.signature(module.__call__).parameters else {}
    variables = jax.eval_shape(lambda *xs: module.init(jax.random.key(0), *xs, **options), *inputs)
    calls: list[_Call] = []

    def apply(variables, *xs):
        with nn.intercept_methods(_recorder(calls)):
            return module.apply(variables, *xs, **options)

    jaxpr = jax.make_jaxpr(apply)(variables, *inputs).jaxpr
    values = {variable: number for number, variable in enumerate(jaxpr.invars)}
    numbers = itertools.count(len(values))
    equations = list(_flatten(jaxpr, values, (), (0, 1), numbers))
    leaves = jax.tree.leaves_with_path(variables)
    parameters = {
        number: (tuple(key.key for key in path[1:]), math.prod(leaf.shape))
        for number, (path, leaf) in enumerate(leaves)
        if path[0].key == "params"
    }
    data = jaxpr.invars[len(leaves) :]
    given = [_Node(None, [_Equation((), "", "", None, (), (values[v],), v.aval.shape, (0, 1))]) for v in data]
    outputs = [values[v] for v in jaxpr.outvars if _known(v, values)]
    return _boxes(calls, given + _nodes(calls, equations), len(given), parameters, outputs)


# Calls of modules


class _Call(NamedTuple):
    module: type
    path: tuple[str, ...]
    detail: str


def _recorder(calls: list[_Call]):
    """An interceptor that appends each call of a module's method from outside, and gives it a named scope."""
    active: list[tuple[str, ...]] = []

    def record(method, args, kwargs, context):
        module = context.module
        idle = isinstance(module, nn.Dropout) and module.rate == 0
        if idle or context.method_name == "setup" or module.path in active[-1:]:
            return method(*args, **kwargs)
        lifted = type(module).__module__ == "flax.linen.transforms"  # as CheckpointBlock, a subclass of Block
        calls.append(_Call(type(module).mro()[lifted], module.path, _detail(module)))
        active.append(module.path)
        try:
            with jax.named_scope(f"@{len(calls) - 1}"):
                # The barrier leaves an equation even of a call that computes nothing, as dropout in evaluation.
                return jax.tree.map(_barrier, method(*args, **kwargs))
        finally:
            active.pop()

    return record


def _barrier(x: Any) -> Any:
    return lax.optimization_barrier(x) if isinstance(x, jax.Array) else x


# What is worth a word about a module, by the name of its field.
_DETAILS = {
    "kernel_size": lambda size: "×".join(map(str, size)) if isinstance(size, tuple | list) else f"{size}×{size}",
    "strides": lambda strides: f"/ {max(strides)}" if isinstance(strides, tuple | list) and max(strides) > 1 else "",
    "num_heads": lambda heads: f"{heads} heads",
    "heads": lambda heads: f"{heads} heads",
    "cell": lambda cell: cell if isinstance(cell, str) else type(cell).__name__,
    "rate": lambda rate: f"{rate:g}" if isinstance(rate, float) else "",
}


def _detail(module: nn.Module) -> str:
    details = [describe(getattr(module, name)) for name, describe in _DETAILS.items() if hasattr(module, name)]
    return " ".join(filter(None, details))


def _whole(call: _Call) -> bool:
    """Whether a module is one layer to its users, though it may call others."""
    return call.module.__module__.startswith(("flax.linen.", "deeplearn.layers.")) and call.module is not nn.Sequential


# Equations


class _Equation(NamedTuple):
    chain: tuple[int, ...]  # the calls that it is in, outermost first
    primitive: str
    function: str
    site: tuple[str, int] | None  # file and line of the module's code that it comes from
    inputs: tuple[int, ...]  # values, by number
    outputs: tuple[int, ...]
    shape: tuple[int, ...]
    loop: tuple[int, int]  # the number of the scan that it is in, 0 for none, and how often that runs


def _flatten(jaxpr, values: dict, chain, loop, numbers: Iterator[int]) -> Iterator[_Equation]:
    """The equations of a jaxpr, with those of inner ones, where modules were called in there, in their places.

    values: the number of each variable that holds one; variables without are constants.
    """
    for equation in jaxpr.eqns:
        here = chain + _scopes(equation)
        inner = _inner(equation)
        if inner is not None and _has_scopes(inner):
            inside = {b: values[a] for a, b in zip(equation.invars, inner.invars, strict=True) if _known(a, values)}
            runs = (next(numbers), loop[1] * equation.params["length"]) if "length" in equation.params else loop
            yield from _flatten(inner, inside, here, runs, numbers)
            for a, b in zip(equation.outvars, inner.outvars, strict=True):
                if _known(b, inside):
                    values[a] = inside[b]
            continue
        read = tuple(values[v] for v in equation.invars if _known(v, values))
        if read:
            values.update({v: next(numbers) for v in equation.outvars})
            function, site = _function(equation, inner)
            written = tuple(values[v] for v in equation.outvars)
            shape = equation.outvars[-1].aval.shape
            yield _Equation(here, equation.primitive.name, function, site, read, written, shape, loop)


def _known(variable, values) -> bool:
    return not isinstance(variable, Literal) and variable in values


def _scopes(equation) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"@(\d+)", str(equation.source_info.name_stack))))


def _inner(equation):
    """The jaxpr that an equation runs, if its inputs and outputs are those of the equation."""
    inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    inner = getattr(inner, "jaxpr", inner)
    return inner if inner is not None and len(inner.invars) == len(equation.invars) else None


def _has_scopes(jaxpr) -> bool:
    inner = map(_inner, jaxpr.eqns)
    return any(map(_scopes, jaxpr.eqns)) or any(_has_scopes(j) for j in inner if j is not None)


# Files of JAX and Flax between a module's code and the function that it called.
_MACHINERY = re.compile(
    r"/(jax|flax)/.*\b(api|api_util|array_methods|ad_checkpoint|core|custom_derivatives|lift|linear_util"
    r"|partial_eval|pjit|source_info_util|traceback_util|transforms|tree_util|ufunc_api)\.py$"
)


def _function(equation, inner) -> tuple[str, tuple[str, int] | None]:
    """The function that a module's code called and that this equation comes from, and where that was."""
    traceback = equation.source_info.traceback
    frames = traceback.frames if traceback else []
    ours = (i for i, f in enumerate(frames) if f.file_name == __file__ and f.function_name.endswith("record"))
    site, *within = frames[: next(ours, 0)][::-1] or [None]
    called = (f.function_name for f in within if not _MACHINERY.search(f.file_name))
    own = equation.params.get("name") or (inner and inner.debug_info.func_name) or equation.primitive.name
    name = next(called, own).split(".")[-1].lstrip("_")
    return name, site and (site.file_name, site.line_num)


# Boxes


class _Node(NamedTuple):
    """The equations of one layer, or, where `call` is None, of one function."""

    call: int | None
    equations: list[_Equation]


# Primitives that say nothing of an architecture when one array alone goes through them.
_ARITHMETIC = {"add", "sub", "mul", "div", "neg"}
_SILENT = {"broadcast_in_dim", "convert_element_type", "copy", "copy_p", "optimization_barrier", "squeeze"}
_SILENT |= {"sharding_constraint", "stop_gradient"}
_LABELS = {"concatenate": "concat", "rewriting_take": "slice", "dot_general": "matmul", "logistic": "sigmoid"}
_JOINS = {"add": "+", "add_any": "+", "sub": "−", "mul": "×", "div": "÷"}


def _nodes(calls: list[_Call], equations: list[_Equation]) -> list[_Node]:
    """Equations by the layer, or the function between layers, that they come from."""
    cut = [tuple(itertools.takewhile(lambda c: not _whole(calls[c]), e.chain)) for e in equations]
    cut = [c + e.chain[len(c) : len(c) + 1] for c, e in zip(cut, equations, strict=True)]
    parents = {call for chain in cut for call in chain[:-1]}
    if not _whole(calls[0]):
        parents.add(0)
    nodes: list[_Node] = []
    layers: dict[int, _Node] = {}
    previous = None
    for chain, equation in zip(cut, equations, strict=True):
        call = chain[-1] if chain and chain[-1] not in parents else None
        key = (chain, equation.site, equation.function) if call is None else call
        if call in layers:
            layers[call].equations.append(equation)
        elif key == previous:
            nodes[-1].equations.append(equation)
        else:
            nodes.append(_Node(call, [equation]))
            if call is not None:
                layers[call] = nodes[-1]
        previous = key
    return nodes


def _boxes(calls, nodes: list[_Node], count: int, parameters, outputs: list[int]) -> list[Box]:
    """Boxes of the nodes, of which the first `count` are inputs, less those that show nothing.

    parameters: path and size by the number of the value.
    """
    producer = {value: i for i, node in enumerate(nodes) for e in node.equations for value in e.outputs}
    through: dict[int, dict[tuple[str, int], None]] = {}  # what nodes that do not show pass on
    shown: dict[int, Box] = {}
    sources: dict[int, list[int]] = {}
    counted: set[int] = set()

    def trace_back(values) -> dict[tuple[str, int], None]:
        """The nodes that show, and the parameters, that values come from."""
        found = {}
        for value in values:
            if value in parameters:
                found["parameter", value] = None
            elif value in producer:
                found |= through[producer[value]] if producer[value] in through else {("node", producer[value]): None}
        return found

    for i, node in enumerate(nodes):
        through[i] = {}  # what a node does with its own values adds nothing to its sources
        found = trace_back([value for e in node.equations for value in e.inputs])
        del through[i]
        froms = [number for kind, number in found if kind == "node"]
        own = [number for kind, number in found if kind == "parameter"]
        box = _box(calls, node, i < count, [shown[j].shape for j in froms], bool(own))
        if box is None:
            through[i] = found
            continue
        if node.call is not None:
            path = calls[node.call].path
            own += [n for n, (name, _) in parameters.items() if name[: len(path)] == path]
        runs = node.equations[0].loop
        size = sum(parameters[n][1] for n in set(own) - counted)
        counted |= set(own)
        shown[i] = box._replace(parameters=size // runs[1], repeat=runs[1], group=runs[0])
        sources[i] = froms

    kept = [number for kind, number in trace_back(outputs) if kind == "node"]
    for i in kept:  # grows
        kept += [j for j in sources[i] if j not in kept]
    order = sorted(set(kept) | set(range(count)))
    position = {i: k for k, i in enumerate(order)}
    return [shown[i]._replace(inputs=tuple(position[j] for j in sources[i])) for i in order]


def _box(calls, node: _Node, is_input: bool, shapes: list[tuple[int, ...]], learns: bool) -> Box | None:
    """The box of a node, None if it is not worth showing."""
    loud = [e for e in node.equations if e.primitive not in _SILENT] or node.equations
    shape = node.equations[-1].shape[1:]
    if is_input:
        return Box("input", "input", "", "", shape, 0, ())
    if node.call is not None:
        module, path, detail = calls[node.call]
        return Box("layer", module.__name__, detail, "/".join(path), shape, 0, ())
    primitives = {e.primitive for e in loud} - _SILENT
    function = loud[-1].function
    label = _LABELS.get(function, function)
    if not shapes or not primitives:
        return None
    if primitives <= _ARITHMETIC | {"add_any"}:
        if len(shapes) < 2 and not learns:
            return None
        label = _JOINS.get(loud[-1].primitive, label)
    if primitives <= _ARITHMETIC | {"reshape"} and "reshape" in primitives and len(shapes) < 2 and not learns:
        if shape == shapes[0]:
            return None
        label = "flatten" if len(shape) == 1 else "reshape"
    caller = node.equations[0].chain[-1:]
    name = "/".join(calls[caller[0]].path) if caller else ""
    return Box("function", label, "", name, shape, 0, ())
