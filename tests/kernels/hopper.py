"""Hopper's kernels interpreted on a CPU, with races detected."""

import contextlib
import functools
import threading

import jax
import pytest
from jax._src.pallas.mosaic.interpret import thread_map

from kernels import target

try:
    from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
except ImportError:  # jax 0.10
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams


class Programs:
    """The interpreter compiles the program of a thread anew for each block: this runs it, and compiles it once."""

    def __init__(self):
        self.lock, self.compiled = threading.Lock(), {}

    def __call__(self, jaxpr, consts, *args):
        with self.lock:
            if id(jaxpr) not in self.compiled:
                program = jax.jit(functools.partial(jax.core.eval_jaxpr, jaxpr)).lower(consts, *args).compile()
                self.compiled[id(jaxpr)] = jaxpr, program  # that no other gets its id
        jax.block_until_ready(self.compiled[id(jaxpr)][1](consts, *args))


@contextlib.contextmanager
def interpreting(capsys):
    """A TMA read beyond the end gives 0, and no two threads race."""
    parameters = {"out_of_bounds_reads": "uninitialized", "uninitialized_memory": "zero"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_map, "_run_jaxpr", Programs())
        jax.config.update("jax_enable_x64", True)  # in all threads
        try:
            with target.interpreted(InterpretGPUParams(detect_races=True, **parameters)):
                yield
        finally:
            jax.config.update("jax_enable_x64", False)
    assert "RACE" not in capsys.readouterr().out
