"""The compiled functions of a run: an experiment's mathematics placed on a mesh."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax

from deeplearn import metrics
from deeplearn.data import sources
from deeplearn.experiment import Experiment
from deeplearn.parallel import compiler, placement
from deeplearn.parallel import mesh as meshes
from deeplearn.tasks import transformations
from deeplearn.training import evaluation, feed, step
from deeplearn.training.state import TrainState, create


class Program(NamedTuple):
    """What a run executes.

    Fields:
      mesh: the devices.
      abstract: the TrainState's shapes, dtypes and shardings: what a checkpoint is restored into.
      init: `() -> TrainState`.
      feed: the data, see deeplearn.training.feed.
      chunk: `(state, data, steps) -> (state, metrics)`; the state that goes in is consumed.
      evaluate: `(state, split) -> {name: value}` of "train", "validation" or "test", at the optimizer's own evaluation
        parameters.
    """

    mesh: Any
    abstract: TrainState
    init: Callable[[], TrainState]
    feed: feed.Feed
    chunk: Callable[..., tuple[TrainState, dict]]
    evaluate: Callable[[TrainState, str], dict]


def build(experiment: Experiment) -> Program:
    """The program of an experiment; nothing is compiled before it is called."""
    config, data = experiment.config, experiment.data
    mesh = meshes.parse(config.mesh)
    meshes.check_batch_size(experiment.batch_size // config.accumulate, mesh)
    task, optimizer = experiment.task, experiment.optimizer
    init = partial(create, task, optimizer, config.seed)
    shapes = jax.eval_shape(init)
    own, logical = placement.parse(config.placement)
    rules = (*own, *experiment.rules, *placement.RULES)
    placed = placement.place_state(shapes, mesh, rules, logical, config.zero)
    whole = meshes.replicated(mesh)

    if isinstance(data.train, sources.Arrays):
        fed = feed.resident(data, experiment.batch_size, experiment.log_every, mesh)
    else:
        fed = feed.streamed(data, config.seed, experiment.batch_size, mesh)
    gather = partial(placement.gather, shardings=placed.params, rules=rules)
    train_step = step.make_step(transformations.with_parameters(task, gather), optimizer, accumulate=config.accumulate)
    chunk = step.make_chunk(train_step, fed.batch_of)
    refresh = min(evaluation.REFRESH, experiment.log_every) if evaluation.needs_refresh(optimizer, shapes) else 0

    def compile(function, **options):
        return jax.jit(meshes.within(mesh, function), compiler_options=compiler.options(), **options)

    evaluated = compile(evaluation.make_evaluated(task, optimizer, fed.batch_of, refresh))
    constrain = partial(meshes.constrain_batch, mesh=mesh)
    sums = evaluation.make_evaluate(task, config.eval_batch_size, meshes.batch_parts(mesh), constrain)
    sums = compile(sums, out_shardings=whole)

    def evaluate(state, split):
        params, model_state = evaluated(state, fed.data(int(state.step), refresh) if refresh else None)
        parts = (sums(params, model_state, state.rng, block) for block in fed.blocks(split))
        return metrics.result(reduce(metrics.add, parts))

    return Program(
        mesh=mesh,
        abstract=jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, placed),
        init=lambda: jax.block_until_ready(compile(init, out_shardings=placed)()),
        feed=fed,
        chunk=compile(chunk, donate_argnums=0, out_shardings=(placed, whole)),
        evaluate=evaluate,
    )


def placed(program: Program) -> str:
    """A table of where the parameters and the optimizer's state lie, and what a device holds of them."""
    parts = {name: getattr(program.abstract, name) for name in ("params", "model_state", "opt_state")}
    return placement.table(parts, jax.tree.map(lambda x: x.sharding, parts))
