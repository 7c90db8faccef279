"""An experiment's train step compiled for devices that are not here, and what can be known of it before it runs."""

import itertools
import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deeplearn.experiment import Experiment
from deeplearn.parallel import cost
from deeplearn.parallel.mesh import AXES
from deeplearn.parallel.topologies import Topology
from deeplearn.training import program
from kernels import target


class Memory(NamedTuple):
    """Bytes on one device; None is unknown, of a program that does not fit.

    Fields:
      parameters, optimizer: their own, and the optimizer's state.
      data: of the training examples that lie there, all of a data set that is small, else a step's.
      temporaries: what a step needs besides, at its peak.
      activations: those of them that the forward pass keeps for the backward pass, at most; None too where they were
        not asked for.
      rest: what the compiler adds: padding, and the program itself.
      total: of all of it.
      available: of the device's memory: all, or what a compiler that refuses says, which keeps some for itself.
    """

    parameters: int
    optimizer: int
    data: int
    temporaries: int | None
    activations: int | None
    rest: int | None
    total: int
    available: int


class Analysis(NamedTuple):
    """Of a step of an experiment on a topology.

    Fields:
      mesh: the sizes of its axes; seconds: of compilation; batch: examples of a step.
      cost: of one device, None where the program does not fit.
      model_flops: of all devices, by the formulas: what is computed anew counts in `cost` alone.
      peak: FLOPs a second of a device, at the experiment's precision.
    """

    topology: Topology
    mesh: dict[str, int]
    seconds: float
    batch: int
    memory: Memory
    cost: cost.Cost | None
    model_flops: float
    peak: float

    @property
    def fits(self) -> bool:
        return self.cost is not None and self.memory.total <= self.memory.available

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def times(self) -> dict[str, float]:
        """Seconds that a step takes at least, for each thing that limits it."""
        chip = self.topology.chip
        return {
            "products": self.cost.flops / self.peak,
            "memory": self.cost.moved / chip.bandwidth,
            "network": sum(self.cost.sent.values()) / chip.network,
        }

    @property
    def step(self) -> float:
        """The longest of `times`, as if all went on at once and each at its peak.

        Williams et al. 2009, Roofline: an insightful visual performance model for multicore architectures.
        """
        return max(self.times.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization of a step that takes `step` (Chowdhery et al. 2022, PaLM, section 4.1)."""
        return self.model_flops / (self.step * self.peak * self.devices)


def analyse(experiment: Experiment, topology: Topology, model_flops: float, activations: bool = True) -> Analysis:
    """Compile the steps that a run of this experiment executes, for devices of the topology.

    activations: whether to compile the forward pass too, of which they are what it leaves.
    """
    built = program.build(experiment, topology.devices)
    state, data = built.abstract, built.feed.abstract(1)
    parts = [on_device(tree) for tree in (state.params, state.opt_state, data)]
    start = time.perf_counter()
    try:
        compiled = built.chunk.lower(state, data, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    except jax.errors.JaxRuntimeError as error:
        if (refused := needed(str(error))) is None:
            raise
        memory, found = Memory(*parts, None, None, None, *refused), None
    else:
        used, found = compiled.memory_analysis(), cost.of(compiled.as_text())
        # Not temp_size, a sum of allocations that a TPU may have one after another: it accepts programs whose
        # temp_size alone is more than it has, and refuses by the peak.
        temporaries = used.peak_memory_in_bytes - used.argument_size_in_bytes
        rest = used.argument_size_in_bytes - sum(parts) + used.generated_code_size_in_bytes
        kept = min(left_by(built, state, data), temporaries) if activations else None
        total = sum(parts) + temporaries + rest
        memory = Memory(*parts, temporaries, kept, rest, total, int(topology.chip.memory))
    chip = topology.chip
    return Analysis(
        topology=topology,
        mesh=dict(built.mesh.shape),
        seconds=time.perf_counter() - start,
        batch=experiment.batch_size,
        memory=memory,
        cost=found,
        model_flops=model_flops,
        peak=chip.flops if experiment.config.precision == "bfloat16" else chip.single,
    )


def left_by(built, state: Any, data: Any) -> float:
    """Bytes that the forward pass by itself leaves for the backward pass; infinity where it does not fit by itself."""
    try:
        return built.kept.lower(state, data).compile().memory_analysis().output_size_in_bytes
    except jax.errors.JaxRuntimeError as error:
        if needed(str(error)) is None:
            raise
        return math.inf


def model_flops(experiment: Experiment) -> float:
    """FLOPs of a batch's loss and gradient, those of products and convolutions, by the formulas of the layers.

    For a Transformer with N parameters in products it is 6 N a token, and attention's 12 T width a layer. The
    experiment is to compute nothing anew, with remat "none".
    """
    task, key = experiment.task, jax.eval_shape(lambda: jax.random.key(0))
    batch = {
        name: jax.ShapeDtypeStruct((experiment.batch_size, *x.shape), x.dtype)
        for name, x in experiment.data.spec.items()
    }
    with target.formulas():
        gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
        lowered = gradient.lower(*jax.eval_shape(task.init, key), batch, key)
    return cost.of(lowered.as_text(dialect="hlo")).flops


def divisions(devices: int, axes: tuple[str, ...] = AXES) -> Iterator[str]:
    """All meshes of so many devices, as texts.

    >>> list(divisions(4, ("data", "fsdp")))
    ['fsdp:4', 'data:2,fsdp:2', 'data:4']
    """
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    for shape in itertools.product(sizes, repeat=len(axes)):
        if math.prod(shape) == devices:
            yield text(dict(zip(axes, shape, strict=True)))


def text(mesh: dict[str, int]) -> str:
    """A mesh as `--config.mesh` has it."""
    return ",".join(f"{axis}:{n}" for axis, n in mesh.items() if n > 1) or "data:1"


def on_device(tree: Any) -> int:
    """Bytes of one device's parts of abstract arrays."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def needed(message: str) -> tuple[int, int] | None:
    """Bytes that a TPU's program needs and may have, as its compiler says that refuses it; None for another error.

    What it calls temporaries has the arguments in it: it goes on where the peak of what it accepts ends.

    >>> found = needed("total memory required for HLO temporaries (1.5G) exceeds available HBM (1.00G)")
    >>> [size / 2**30 for size in found]
    [1.5, 1.0]
    """
    size = r"([\d.]+[KMGT]?)"
    phrases = rf"Used {size} of {size} hbm", rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)"
    found = next(filter(None, (re.search(phrase, message) for phrase in phrases)), None)
    return found and tuple(map(_bytes, found.groups()))


def _bytes(text):
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", text).groups()
    return int(float(number) * 1024 ** " KMGT".index(unit or " "))
