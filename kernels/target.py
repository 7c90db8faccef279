"""The machine that a kernel is traced for: its platform and kind, or the interpreter that plays it on a CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

_interpreter: Any = None  # while tests trace
_formulas = False
_used: set[tuple[str, str]] | None = None  # within `recorded`


def device() -> tuple[str, str]:
    """Platform ('cpu', 'cuda', 'tpu') and kind ('NVIDIA H200', 'TPU v5 lite') of the mesh that is set, or else of JAX's
    default device. The mesh may be of devices that are not here.

    >>> device()[0]
    'cpu'
    """
    known = jax.sharding.get_abstract_mesh().abstract_device
    platform, kind = (known.platform, known.device_kind) if known else _default()
    return {"gpu": "cuda"}.get(platform, platform), kind


def _default() -> tuple[str, str]:
    found = jax.config.jax_default_device or jax.devices()[0]
    return (found, found) if isinstance(found, str) else (found.platform, found.device_kind)


def interpreter() -> Any:
    """What to pass as `interpret` to a Pallas kernel: None unless within `interpreted`."""
    return _interpreter


def wants_formulas() -> bool:
    """Whether `implementation=None` means the reference: within `formulas`."""
    return _formulas


@contextlib.contextmanager
def formulas():
    """What is traced herein is each operation's reference: the mathematics, to be counted and not to be run."""
    global _formulas
    before, _formulas = _formulas, True
    try:
        yield
    finally:
        _formulas = before


@contextlib.contextmanager
def recorded() -> Iterator[set[tuple[str, str]]]:
    """The set of (operation, implementation) that is filled by what is traced in the block.

    >>> import jax.numpy as jnp
    >>> from kernels.convolution import convolution
    >>> with recorded() as used:
    ...     _ = jax.eval_shape(convolution, jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4)))
    >>> used
    {('convolution', 'xla')}
    """
    global _used
    before, _used = _used, set()
    try:
        yield _used
    finally:
        _used = before


def record(operation: str, implementation: str) -> None:
    """Note for `recorded` that an operation is traced with an implementation."""
    if _used is not None:
        _used.add((operation, implementation))


@contextlib.contextmanager
def interpreted(parameters: Any):
    """Kernels that are traced herein run on a CPU: `parameters` are Pallas's InterpretParams or InterpretGPUParams."""
    global _interpreter
    before, _interpreter = _interpreter, parameters
    try:
        yield
    finally:
        _interpreter = before
