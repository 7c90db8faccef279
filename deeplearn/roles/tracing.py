"""How a function uses its parameters: each is followed through reshapes, casts, loops and calls to its products.

An abstract interpreter of jaxprs. An array that is a rearranged parameter, or several of them, is a view of it: for
each axis of the array, a view has the parameter's axes that lie there. An operation on a view and activations is a use.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal


class Use(NamedTuple):
    """How an operation uses a parameter.

    Fields:
      how: "product" with activations, "inner" product with parameters, "lookup", "sum" with activations, or "other".
      inputs: the parameter's axes that a product sums over, or that a lookup chooses from.
      outputs: its axes that stay.
    """

    how: str
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


View = tuple[frozenset[int], ...]  # of each axis of an array, the axes of a parameter that lie there


class Value(NamedTuple):
    """What is known of an array in the loss.

    Fields:
      views: of each parameter whose numbers are in it, by its place among the leaves.
      data: whether it depends on the batch, a key or a state.
    """

    views: dict[int, View]
    data: bool


NOTHING = Value({}, False)


def trace(function: Callable[..., Any], params: Any, *data: Any) -> list[list[Use]]:
    """The uses of each parameter's leaf by `function(params, *data)`, in the order of the program.

    Args:
      function: a loss, or a model.
      params: a tree of arrays, or of their shapes.
      data: the other arguments, arrays or shapes. A batch needs two examples or more: a number is no activation.
    """
    closed = jax.make_jaxpr(function)(params, *data)
    leaves = jax.tree.leaves(params)
    views = [tuple(frozenset({axis}) for axis in range(len(leaf.shape))) for leaf in leaves]
    operands = [Value({i: view}, False) for i, view in enumerate(views)]
    operands += [Value({}, True)] * (len(closed.jaxpr.invars) - len(leaves))
    uses: list[list[Use]] = [[] for _ in leaves]
    _walk(closed.jaxpr, operands, uses)
    return uses


def _walk(jaxpr, inputs: Sequence[Value], uses: list[list[Use]]) -> list[Value]:
    """The values of a jaxpr's results; adds the uses of parameters on the way to `uses`."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def value(atom):
        return NOTHING if isinstance(atom, Literal) else known.get(atom, NOTHING)

    for eqn in jaxpr.eqns:
        # A number that depends on the data (a norm, a rate) scales a parameter; it is no activation.
        operands = [value(x) if x.aval.size > 1 else value(x)._replace(data=False) for x in eqn.invars]
        known |= dict(zip(eqn.outvars, _apply(eqn, operands, uses), strict=True))
    return list(map(value, jaxpr.outvars))


def _apply(eqn, operands: list[Value], uses: list[list[Use]]) -> list[Value]:
    """The values of an operation's results."""
    name = eqn.primitive.name
    if name in LOOPS:
        return LOOPS[name](eqn.params, operands, uses)
    body = next((eqn.params[key] for key in BODIES if key in eqn.params), None)
    body = getattr(body, "jaxpr", body)
    if body is not None and len(body.invars) == len(operands):
        return _walk(body, operands, uses)
    if name == "optimization_barrier":
        return operands
    data = any(value.data for value in operands)
    results = [Value({}, data)] * len(eqn.outvars)
    if name in PRODUCTS:
        for value, (inputs, outputs) in zip(operands, PRODUCTS[name](eqn), strict=False):
            for leaf, axes in value.views.items():
                uses[leaf].append(Use("product" if data else "inner", _union(axes, inputs), _union(axes, outputs)))
        if name == "dot_general" and not data:
            results = [_factors(eqn, operands)]
    elif data:
        for value in operands:
            for leaf, axes in value.views.items():
                uses[leaf].append(_mixed(eqn, axes))
    elif eqn.outvars and not name.startswith(("reduce", "arg")):
        move = MOVES.get(name, lambda eqn, axes: axes)
        rank = eqn.outvars[0].aval.ndim
        moved = {leaf: move(eqn, axes) for value in operands for leaf, axes in value.views.items()}
        results = [Value({leaf: axes for leaf, axes in moved.items() if len(axes) == rank}, False)] * len(eqn.outvars)
    return results


def _mixed(eqn, axes: View) -> Use:
    """Of a view in an operation with activations, other than a product."""
    name, shape = eqn.primitive.name, eqn.invars[0].aval.shape
    if name != "gather":
        return Use("sum" if name in ("add", "add_any", "sub") else "other", outputs=_union(axes, range(len(axes))))
    sizes = eqn.params["slice_sizes"]
    rows = [i for i, (size, kept) in enumerate(zip(shape, sizes, strict=True)) if kept < size]
    return Use("lookup", _union(axes, rows), _union(axes, [i for i in range(len(shape)) if i not in rows]))


def _union(axes: View, chosen) -> frozenset[int]:
    return frozenset().union(*(axes[i] for i in chosen))


# Products: of each operand, the axes that are summed over and those that stay.


def _dot(eqn):
    (contracted, batch) = eqn.params["dimension_numbers"]
    for operand, summed, alike in zip(eqn.invars, contracted, batch, strict=True):
        yield summed, [i for i in range(operand.aval.ndim) if i not in summed and i not in alike]


def _factors(eqn, operands: list[Value]) -> Value:
    """A product of parameters is a view of both: of each along the axes that come from it."""
    _, (batch, _) = eqn.params["dimension_numbers"]
    views, start, rank = {}, len(batch), eqn.outvars[0].aval.ndim
    for operand, (_, free) in zip(operands, _dot(eqn), strict=True):
        for leaf, axes in operand.views.items():
            place = dict(zip(range(start, start + len(free)), (axes[i] for i in free), strict=True))
            views[leaf] = tuple(place.get(i, frozenset()) for i in range(rank))
        start += len(free)
    return Value(views, False)


def _convolution(eqn):
    numbers = eqn.params["dimension_numbers"]
    yield [], range(len(numbers.lhs_spec))
    yield numbers.rhs_spec[1:], numbers.rhs_spec[:1]  # the output channels come first there


PRODUCTS = {
    "dot_general": _dot,
    "ragged_dot_general": lambda eqn: [([], [0, 1]), ([1], [2])],  # (G, D, F): experts
    "conv_general_dilated": _convolution,
    # Those of kernels.convolution: (kh, kw, C, K), forward and transposed.
    "convolution_forward": lambda eqn: [([], range(4)), ((0, 1, 2), (3,))],
    "convolution_input_gradient": lambda eqn: [([], range(4)), ((0, 1, 3), (2,))],
}


# Moves: where the axes of a view lie after an operation.


def _reshape(eqn, axes: View) -> View:
    """Axes of equal products of sizes belong together: (6, 4) to (2, 3, 4) gives the first to the first two."""
    old, new = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    result, i, start = [], 0, 0
    while i < len(old) or start < len(new):
        end, left, right = start, 1, 1
        sources = frozenset()
        while True:
            if left <= right and i < len(old) and (left < right or left == 1):
                left, sources, i = left * old[i], sources | (axes[i] if old[i] > 1 else frozenset()), i + 1
            elif end < len(new) and (right < left or right == 1):
                right, end = right * new[end], end + 1
            else:
                break
            if left == right > 1:
                break
        result += [sources if new[k] > 1 else frozenset() for k in range(start, end)]
        start = end
    return tuple(result)


def _broadcast(eqn, axes: View) -> View:
    place = dict(zip(eqn.params["broadcast_dimensions"], axes, strict=True))
    return tuple(place.get(i, frozenset()) for i in range(len(eqn.params["shape"])))


def _take(eqn, axes: View) -> View:
    """Of a gather at fixed places."""
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = iter([axes[i] for i in range(len(axes)) if i not in gone])
    return tuple(next(kept) if i in numbers.offset_dims else frozenset() for i in range(eqn.outvars[0].aval.ndim))


MOVES = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "gather": _take,
    "squeeze": lambda eqn, axes: tuple(a for i, a in enumerate(axes) if i not in eqn.params["dimensions"]),
    "transpose": lambda eqn, axes: tuple(axes[i] for i in eqn.params["permutation"]),
}


# Loops and branches, whose operands are not those of their bodies one by one.


def _scan(params, operands, uses):
    body, consts, carried = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
    fixed, carry, each = operands[:consts], operands[consts : consts + carried], operands[consts + carried :]
    each = [Value({leaf: axes[1:] for leaf, axes in value.views.items()}, value.data) for value in each]
    carry = _steady(lambda carry: _walk(body, [*fixed, *carry, *each], [[] for _ in uses])[:carried], carry)
    results = _walk(body, [*fixed, *carry, *each], uses)
    return [*results[:carried], *(Value({}, value.data) for value in results[carried:])]


def _while(params, operands, uses):
    first, second = params["cond_nconsts"], params["body_nconsts"]
    body, fixed = params["body_jaxpr"].jaxpr, operands[first : first + second]
    carry = _steady(lambda carry: _walk(body, [*fixed, *carry], [[] for _ in uses]), operands[first + second :])
    return _walk(body, [*fixed, *carry], uses)


def _cond(params, operands, uses):
    branches = [_walk(branch.jaxpr, operands[1:], uses) for branch in params["branches"]]
    return [_merge(values) for values in zip(*branches, strict=True)]


def _steady(step, carry):
    """What is known of a loop's carry at every turn."""
    while (after := [_merge(pair) for pair in zip(carry, step(carry), strict=True)]) != carry:
        carry = after
    return carry


def _merge(values: Sequence[Value]) -> Value:
    data = any(value.data for value in values)
    alike = all(value.views == values[0].views for value in values)
    return Value(values[0].views if alike and not data else {}, data)


LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")  # parameters of calls, derivatives by hand and recomputation
