"""From a config to everything that a run needs."""

import difflib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from deeplearn import config as configs
from deeplearn import fields, metrics, optimizers, roles, schedules
from deeplearn.data import splits
from deeplearn.errors import UserError, unknown
from deeplearn.identity.source import Source, execute
from deeplearn.tasks import transformations

HOME = Path(__file__).resolve().parent.parent / "experiments"


class Target(NamedTuple):
    """The value that a validation metric is to reach, e.g. accuracy>=0.99."""

    metric: str
    rises: bool
    value: float

    def reached(self, value: float) -> bool:
        return value >= self.value if self.rises else value <= self.value


class Experiment(NamedTuple):
    """A learning problem wired to its data and its optimizer, and the budget of the run.

    Fields:
      task, data, optimizer: see deeplearn.tasks, deeplearn.data, deeplearn.optimizers.
      model: the Flax module behind the task, for the pictures of it; None if there is none.
      rules: how the model's parameters lie on a mesh, before the usual rules; see deeplearn.parallel.placement.
      roles: `params -> tree of Role`, which of them are kernels, embeddings and vectors; see deeplearn.roles.
      tokenizer: of a language model's text, see deeplearn.data.tokenizers; None of any other.
      batch_size, steps, log_every, eval_every, checkpoint_every: all counted in steps of the optimizer.
      target: a Target or None.
      config: the config that all this came from.
    """

    task: Any
    data: Any
    optimizer: Any
    model: Any
    rules: tuple
    roles: Any
    tokenizer: Any
    batch_size: int
    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    target: Target | None
    config: Any


def parse_target(text: str) -> Target | None:
    """The target that `text` names, e.g. "accuracy>=0.99" or "loss<=0.1"; None for an empty text.

    >>> parse_target("loss<=0.1")
    Target(metric='loss', rises=False, value=0.1)
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
    try:
        metric, relation, value = match.groups()
        target = Target(metric, relation == ">=", float(value))
    except (AttributeError, ValueError):
        raise UserError(f"target {text!r} is not of the form METRIC>=NUMBER or METRIC<=NUMBER") from None
    fields.check_finite(f"the number in target {text!r}", target.value)
    return target


def evaluated(task, data) -> dict[str, Any]:
    """The metrics that a task evaluates on examples of this data, by name; shapes, nothing is computed."""
    batch = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in data.spec.items()}

    def metrics_of(batch):
        key = jax.random.key(0)
        return task.evaluate(*task.init(key), batch, key)

    return jax.eval_shape(metrics_of, batch)


def check_target(target: Target | None, task, data) -> Target | None:
    """The target itself, if the task evaluates its metric and more of it is better or worse, as the target says.

    A run should not find out after an epoch.
    """
    if target is None:
        return None
    found = evaluated(task, data)
    if target.metric not in found:
        raise UserError(f"target metric {target.metric!r} is not evaluated; there are: {', '.join(sorted(found))}")
    if metrics.rises(target.metric) not in (None, target.rises):
        here, better = ("<=", ">=")[:: -1 if target.rises else 1]
        more = "less" if target.rises else "more"
        raise UserError(
            f"target {target.metric}{here}{target.value:g} is in the wrong direction: {more} {target.metric} is better;"
            f" write {target.metric}{better}{target.value:g}"
        )
    return target


def wire(config, task, data, model=None, optimizer=None, rules=(), tokenizer=None) -> Experiment:
    """The experiment of a config: its optimizer and schedule by name, its regularizers, its budget in steps.

    Args:
      config: the numbers, see `deeplearn.config`.
      task: of this learning problem, before the config's regularizers.
      data: the splits.
      model: the Flax module, for the picture of the network.
      optimizer: a `deeplearn.optimizers.Optimizer` in place of the config's.
      rules: where parameters lie on a mesh, see `deeplearn.parallel.placement`.
      tokenizer: of the texts, for `generate`.

    Raises:
      UserError: a value of the config makes no sense, or does not fit the data; or a label or a token is out of range.
    """
    configs.check(config)
    splits.check(data, vocabulary=_vocabulary(model, tokenizer))
    size = len(data.train)
    batch_size = _batch_size(config, size)
    if batch_size != config.batch_size:  # the optimizer's own: the identity and the manifest hold what is used
        config = config.copy_and_resolve_references()
        config.batch_size = batch_size
    epoch = math.ceil(size / batch_size)
    if not config.steps and not config.epochs * size / batch_size <= fields.LARGEST:
        raise UserError(
            f"config.epochs is {config.epochs}; a run has at most {fields.LARGEST} steps, and these are more"
        )
    steps = config.steps or math.ceil(config.epochs * size / batch_size)
    eval_every = min(config.eval_every or epoch, steps)
    roles_of = roles.of_task(task, data.spec)
    if optimizer is None:
        optimizer = optimizers.make(
            config.optimizer,
            learning_rate=config.learning_rate,
            schedule=schedules.make(config.schedule, steps, epoch),
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            ema=config.ema,
            max_norm=config.max_norm,
            roles=roles_of,
        )
    return Experiment(
        task=transformations.regularize(task, config.l1, config.l2, roles_of),
        data=data,
        optimizer=optimizer,
        model=model,
        rules=rules,
        roles=roles_of,
        tokenizer=tokenizer,
        batch_size=batch_size,
        steps=steps,
        log_every=min(config.log_every, eval_every),
        eval_every=eval_every,
        checkpoint_every=config.checkpoint_every or eval_every,
        target=check_target(parse_target(config.target), task, data),
        config=config,
    )


def _batch_size(config, size: int) -> int:
    """The batch size of the optimizer if it has one of its own, else that of the config, for `size` training examples.

    Raises:
      UserError: there are fewer examples, or `accumulate` does not divide it.
    """
    name, _ = optimizers.parse(config.optimizer)
    own = optimizers.OPTIMIZERS[name].batch_size
    batch_size = size if own == "full" else own or config.batch_size
    if batch_size > size:
        fits = size // config.accumulate * config.accumulate
        remedy = f"--config.batch_size={fits}" if fits else f"--config.batch_size={size} --config.accumulate=1"
        raise UserError(f"config.batch_size is {batch_size}, and there are {size} training examples; {remedy} fits")
    if batch_size % config.accumulate:
        raise UserError(
            f"config.accumulate is {config.accumulate}; it must divide the batch of the optimizer {name}, which has "
            f"{batch_size} examples (1 always does)"
        )
    return batch_size


def _vocabulary(model, tokenizer) -> int | None:
    """How many tokens exist; None where there are none."""
    if tokenizer is not None:
        return tokenizer.vocabulary_size
    return getattr(getattr(model, "architecture", model), "vocabulary", None)


def find(path: str) -> Path:
    """The experiment file that `path` names: a built-in one by its name alone, any other by its path.

    Raises:
      UserError: there is no such experiment, or no such file.

    >>> find("digits_mlp").name
    'digits_mlp.py'
    """
    return find_in(HOME, "experiment", path)


def find_in(folder: Path, kind: str, path: str) -> Path:
    """The file that `path` names: one of `folder` by its name alone, or any by its path.

    A path that does not exist never stands for a file of that name elsewhere.
    """
    names = [file.stem for file in folder.glob("[a-z]*.py")]
    if "/" not in path and not path.endswith(".py"):
        if path not in names:
            raise unknown(kind, path, names)
        return folder / f"{path}.py"
    file = Path(path).expanduser()
    if file.is_file():
        return file
    nearest = difflib.get_close_matches(file.stem, names, n=1, cutoff=0.5)
    if nearest:
        raise UserError(f"there is no file {path}; the built-in {kind} {nearest[0]} is named without a path")
    raise UserError(f"there is no file {path}; built-in ones are named without a path: {', '.join(sorted(names))}")


def load(path: str | Source) -> ModuleType:
    """The module of an experiment, by its path or its source; UserError if it lacks `get_config` or `build`."""
    source = path if isinstance(path, Source) else Source(find(path))
    module = execute(source)
    for function in ("get_config", "build"):
        if not hasattr(module, function):
            raise UserError(f"{source.experiment} is not an experiment: it has no function {function}()")
    return module


def fields_of(module: ModuleType) -> dict[str, fields.Field]:
    """What an experiment's own fields may hold: its table FIELDS, and `config.SHARED` for the names that it leaves out.

    A shared name means something else here if the experiment's default is not what the shared table allows.

    Raises:
      UserError: FIELDS has a name that the config lacks.
    """
    defaults, own = module.get_config(), getattr(module, "FIELDS", {})
    for name in own:
        if name not in defaults:
            raise unknown(f"field in FIELDS of {module.__name__.rpartition('.')[2]}", name, defaults.keys())
    shared = {name: field for name, field in configs.SHARED.items() if name in defaults}
    return {name: field for name, field in shared.items() if fields.fits(defaults[name], field)} | own


def check(module: ModuleType, config) -> None:
    """Raise UserError for the first value of an experiment's config that makes no sense; nothing is built."""
    configs.check(config, fields_of(module))


def configure(path: str | Source, changes: dict[str, Any]):
    """The config of an experiment with some of its fields changed.

    Raises:
      UserError: the experiment lacks a field, or a value makes no sense.

    >>> configure("digits_mlp", {"dropout": 0.1}).dropout
    0.1
    """
    name = Path(path).stem if isinstance(path, str) else path.experiment.stem
    module = load(path)
    config, own = module.get_config(), fields_of(module)
    for field, value in changes.items():
        if field not in config:
            raise unknown(f"config field of {name}", field, config.keys())
        configs.check_field(field, value, own, f"{name}: ")
        try:
            config[field] = tuple(value) if isinstance(value, list) else value
        except TypeError:
            raise UserError(f"{name}: {field}={value!r} is not of the type of {config[field]!r}") from None
    configs.check(config, own, f"{name}: ")
    return config
