"""The compiled functions of a run: an experiment's mathematics placed on a mesh."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax

from deeplearn import metrics
from deeplearn.data import sources
from deeplearn.experiment import Experiment
from deeplearn.parallel import compiler, placement
from deeplearn.parallel import mesh as meshes
from deeplearn.roles import name_of
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
      chunk: `(state, data, steps) -> (state, metrics)`, of no more steps than `log_every`, or than there are batches in
        `data` where that is streamed (UserError); the state that goes in is consumed. steps: an int.
      kept: `(state, data) -> tree`, what the forward pass of a step keeps for the backward pass.
      evaluate: `(state, split) -> {name: value}` of "train", "validation" or "test", at the optimizer's own evaluation
        parameters; values are on the host.
    """

    mesh: Any
    abstract: TrainState
    init: Callable[[], TrainState]
    feed: feed.Feed
    chunk: Callable[..., tuple[TrainState, dict]]
    kept: Callable[[TrainState, Any], Any]
    evaluate: Callable[[TrainState, str], dict]


def build(experiment: Experiment, devices: Sequence[jax.Device] | None = None) -> Program:
    """The program of an experiment; nothing is compiled before it is called.

    devices: those of the mesh, JAX's own unless given; of a topology that is not here, what is built can be compiled.
    """
    config, data = experiment.config, experiment.data
    mesh = meshes.parse(config.mesh, devices)
    meshes.check_batch_size(experiment.batch_size, mesh, config.accumulate)
    meshes.check_model(experiment.model, mesh)
    meshes.check_jit(mesh)
    task, optimizer = experiment.task, experiment.optimizer
    init = partial(create, task, optimizer, config.seed)
    shapes = jax.eval_shape(meshes.within(mesh, init))
    own, logical = placement.parse(config.placement)
    rules = (*own, *experiment.rules, *placement.RULES)
    placed = placement.place_state(shapes, mesh, rules, logical, config.zero)
    whole = meshes.replicated(mesh)

    if isinstance(data.train, sources.Arrays):
        fed = feed.resident(data, experiment.batch_size, experiment.log_every, mesh)
    else:
        fed = feed.streamed(data, config.seed, experiment.batch_size, mesh)
    gather = partial(placement.gather, shardings=placed.params, rules=rules)
    placed_task = transformations.with_parameters(task, gather)
    train_step = step.make_step(placed_task, optimizer, accumulate=config.accumulate)
    chunk = step.make_chunk(train_step, fed.batch_of)
    refresh = min(evaluation.REFRESH, experiment.log_every) if evaluation.needs_refresh(optimizer, shapes) else 0

    def compile(function, **options):
        return jax.jit(
            meshes.within(mesh, function), compiler_options=compiler.options(mesh.devices.flat[0].platform), **options
        )

    evaluated = compile(evaluation.make_evaluated(task, optimizer, fed.batch_of, refresh, config.accumulate))
    constrain = partial(meshes.constrain_batch, mesh=mesh)
    sums = evaluation.make_evaluate(task, config.eval_batch_size, meshes.batch_parts(mesh), constrain)
    sums = compile(sums, out_shardings=whole)

    def kept(state, data):
        batch = jax.tree.map(lambda x: x[: x.shape[0] // config.accumulate], fed.batch_of(state, data)(0))
        rest = state.model_state, constrain(batch), state.rng
        return jax.vjp(lambda params: placed_task.loss(params, *rest), state.params, has_aux=True)[1]

    def evaluate(state, split):
        params, model_state = evaluated(state, fed.data(int(jax.device_get(state.step)), refresh) if refresh else None)
        parts = (sums(params, model_state, state.rng, block) for block in fed.blocks(split))
        return metrics.result(jax.device_get(reduce(metrics.add, parts)))  # on the host: a class may have no example

    return Program(
        mesh=mesh,
        abstract=jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, placed),
        init=lambda: jax.block_until_ready(compile(init, out_shardings=placed)()),
        feed=fed,
        chunk=step.bounded(compile(chunk, donate_argnums=0, out_shardings=(placed, whole)), fed.length, mesh),
        kept=compile(kept),
        evaluate=evaluate,
    )


def placed(program: Program, roles: Callable[[Any], Any]) -> str:
    """A table of where the parameters and the optimizer's state lie, what a device holds of them, and their roles."""
    parts = {name: getattr(program.abstract, name) for name in ("params", "model_state", "opt_state")}
    leaves = jax.tree_util.tree_leaves_with_path({"params": roles(program.abstract.params)})
    by_path = {name_of(path): role for path, role in leaves}
    return placement.table(parts, jax.tree.map(lambda x: x.sharding, parts), by_path)
