"""What each parameter is to its loss: a kernel, an embedding or a vector, and which of its axes are inputs.

The loss says so: a kernel is multiplied with activations, in a matrix product or a convolution, and summed over its
input axes; rows of an embedding are looked up, or added to positions; all others (biases, gains, initial states) are
vectors. Weight decay, Muon, max-norm and the norms of layers use these roles, not names: so they know heads, experts
and stacked layers. KFAC-JAX (Botev and Martens 2022) finds layers in a similar way.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from deeplearn.roles.tracing import Use, trace

KINDS = ("kernel", "embedding", "vector")
Axes = tuple[int, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Role:
    """What a parameter is.

    Fields:
      kind: one of KINDS.
      inputs: the axes that a product sums over; of an embedding, those that name the row.
      outputs: the axes of the units, or of a row.
      stack: the axes that count independent parameters: layers of a loop, experts, members of an ensemble.
    """

    kind: str
    inputs: Axes
    outputs: Axes
    stack: Axes = ()

    @property
    def decays(self) -> bool:
        """Whether weight decay and penalties apply: to all but vectors."""
        return self.kind != "vector"

    def of_one(self) -> "Role":
        """The role of one of the stack: its axes as they are when those of the stack are gone."""
        left = sorted({*self.inputs, *self.outputs})
        inputs, outputs = (tuple(left.index(axis) for axis in axes) for axes in (self.inputs, self.outputs))
        return Role(self.kind, inputs, outputs)

    def __str__(self) -> str:
        """The kind and the axes, e.g. "kernel 1 -> 2, stack 0"."""
        inputs, outputs, stack = (",".join(map(str, axes)) for axes in (self.inputs, self.outputs, self.stack))
        return self.kind + (f" {inputs} -> {outputs}" if inputs else "") + (f", stack {stack}" if stack else "")


def by_shape(params: Any) -> Any:
    """The roles by shape alone, without a loss: arrays of two axes or more are kernels, their last axis the output.

    >>> roles = by_shape({"kernel": jax.numpy.zeros((2, 3)), "bias": jax.numpy.zeros(3)})
    >>> str(roles["kernel"]), str(roles["bias"])
    ('kernel 0 -> 1', 'vector')
    """

    def role(x):
        axes = tuple(range(x.ndim))
        return Role("kernel", axes[:-1], axes[-1:]) if x.ndim > 1 else Role("vector", (), axes)

    return jax.tree.map(role, params)


def find(function: Callable[..., Any], params: Any, *data: Any) -> dict[str, Role]:
    """The role of each parameter of `function(params, *data)`, by its path; the function is traced, not computed.

    Args: as for `tracing.trace`.

    >>> model = lambda params, x: x @ params["w"] + params["b"][None]
    >>> shapes = {"w": jax.numpy.zeros((2, 3)), "b": jax.numpy.zeros(3)}
    >>> {path: str(role) for path, role in find(model, shapes, jax.numpy.zeros((5, 2))).items()}
    {'b': 'vector', 'w': 'kernel 0 -> 1'}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {name_of(path): leaf.shape for path, leaf in leaves}
    uses = trace(function, params, *data)
    roles = {name: _role(shape, of_one) for (name, shape), of_one in zip(shapes.items(), uses, strict=True)}
    kernels: dict[str, list[tuple[Shape, Role]]] = {}
    for name, role in roles.items():
        if role.kind == "kernel":
            kernels.setdefault(_module(name), []).append((shapes[name], role))
    return {name: _beside(shapes[name], role, kernels.get(_module(name), [])) for name, role in roles.items()}


def of_task(task, spec: Mapping[str, Any]) -> Callable[[Any], Any]:
    """`params -> tree of Role`, by the task's loss, which is traced when roles are first asked for.

    Args:
      task: see deeplearn.tasks.
      spec: the shape and dtype of each array of an example.
    """

    @functools.cache
    def roles():
        key = jax.eval_shape(lambda: jax.random.key(0))
        params, model_state = jax.eval_shape(task.init, key)
        batch = {name: jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for name, x in spec.items()}
        return find(task.loss, params, model_state, batch, key)

    return lambda params: lookup(roles(), params)


def table(params: Any, roles: Any) -> str:
    """A line for each parameter: path, shape and role.

    >>> params = {"bias": jax.numpy.zeros(3), "kernel": jax.numpy.zeros((2, 3))}
    >>> print(table(params, by_shape(params)))
    path    shape   role
    bias    (3,)    vector
    kernel  (2, 3)  kernel 0 -> 1
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rows = [("path", "shape", "role")]
    for (path, x), role in zip(leaves, jax.tree.leaves(roles), strict=True):
        rows.append((name_of(path), str(x.shape), str(role)))
    path, shape, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{a:{path}}  {b:{shape}}  {c}" for a, b, c in rows)


def summary(roles: Any) -> str:
    """One line: how many parameters there are of each kind.

    >>> params = {"bias": jax.numpy.zeros(3), "kernel": jax.numpy.zeros((2, 3))}
    >>> summary(by_shape(params))
    'weight decay applies to 1 kernel and 0 embeddings, not to 1 vector'
    """
    kinds = [role.kind for role in jax.tree.leaves(roles)]
    number = {kind: f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) != 1)}" for kind in KINDS}
    return f"weight decay applies to {number['kernel']} and {number['embedding']}, not to {number['vector']}"


def lookup(roles: Mapping[str, Role], params: Any) -> Any:
    """The roles as a tree like `params`, which may be a part of the parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: roles[name_of(path)], params)


def name_of(path: tuple) -> str:
    """A path in a tree as text, "layers/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _module(name: str) -> str:
    return name.rpartition("/")[0]


def _role(shape: Shape, uses: Sequence[Use]) -> Role:
    """By a lookup, else by the first product, else by what is added over more than one axis."""
    axes = range(len(shape))
    seen = frozenset().union(*(use.inputs | use.outputs for use in uses)) if uses else frozenset(axes)
    stack = tuple(axis for axis in axes if axis not in seen)
    lookup = next((use for use in uses if use.how == "lookup"), None)
    products = [use for how in ("product", "inner") for use in uses if use.how == how and use.inputs]
    product = products[0] if products else None
    rows = next((use for use in uses if use.how == "sum"), None)
    if first := lookup or product:
        inputs = tuple(axis for axis in axes if axis in first.inputs)
        outputs = tuple(axis for axis in axes if axis not in inputs and axis not in stack)
        return Role("embedding" if lookup else "kernel", inputs, outputs, stack)
    wide = tuple(axis for axis in axes if axis not in stack and shape[axis] > 1)
    if rows and len(wide) > 1:
        return Role("embedding", wide[:-1], wide[-1:], stack)
    return Role("vector", (), tuple(axis for axis in axes if axis not in stack), stack)


def _beside(shape: Shape, role: Role, kernels: Sequence[tuple[Shape, Role]]) -> Role:
    """A bias of several axes (heads, experts) looks like an embedding, but has the outputs of the kernel beside it."""
    if role.kind == "embedding":
        for kernel, of_kernel in kernels:
            kept = sorted((*of_kernel.stack, *of_kernel.outputs))
            if tuple(kernel[axis] for axis in kept) == tuple(shape):
                stack = tuple(i for i, axis in enumerate(kept) if axis in of_kernel.stack)
                return Role("vector", (), tuple(i for i in range(len(shape)) if i not in stack), stack)
    return role
