"""The fields that every experiment's config has, each with its default and its reason, and what each may hold."""

from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from deeplearn import fields
from deeplearn.errors import UserError
from deeplearn.fields import Field
from deeplearn.layers import recurrent, remat

PRECISIONS = ("float32", "bfloat16")

# What the fields of `base_config` may hold. Texts that name more than a choice are checked where they are parsed.
FIELDS = {
    "seed": fields.SEED,
    "optimizer": fields.TEXT,
    "learning_rate": Field(float, 0, above=True, unset=True),
    "schedule": fields.TEXT,
    "weight_decay": Field(float, 0, unset=True),
    "batch_size": fields.COUNT,
    "epochs": Field(float, 0),
    "steps": fields.OPTIONAL_COUNT._replace(note="0: the epochs count"),
    "accumulate": fields.COUNT,
    "log_every": fields.COUNT,
    "eval_every": fields.OPTIONAL_COUNT._replace(note="0: once an epoch"),
    "eval_batch_size": fields.COUNT,
    "checkpoint_every": fields.OPTIONAL_COUNT._replace(note="0: after each evaluation"),
    "patience": fields.OPTIONAL_COUNT,
    "target": fields.TEXT,
    "precision": Field(str, choices=PRECISIONS),
    "mesh": fields.TEXT,
    "placement": fields.TEXT,
    "zero": fields.SWITCH,
    "clip_norm": fields.AMOUNT,
    "l1": fields.AMOUNT,
    "l2": fields.AMOUNT,
    "max_norm": fields.AMOUNT,
    "ema": fields.FRACTION._replace(note="0 turns it off"),
    "remat": Field(str, choices=tuple(remat.POLICIES)),
}

# What the fields may hold that experiments add, by the names that several of them use. An experiment whose field is
# something else, or has another name, says so in a table FIELDS of its own.
SHARED = {
    "augment": fields.SWITCH,
    "batch_norm": fields.SWITCH,
    "bias": fields.SWITCH,
    "cell": Field(str, choices=tuple(recurrent.CELLS)),
    "channels": fields.SIZES,
    "dataset": fields.TEXT,
    "depth": fields.DEPTH,
    "dropout": fields.FRACTION,
    "features": fields.SIZES,
    "heads": fields.SIZE,
    "hidden": fields.SIZE,
    "label_smoothing": fields.FRACTION,
    "layers": fields.DEPTH,
    "length": fields.COUNT,
    "patch": fields.SIZE,
    "tokenizer": fields.TEXT,
    "width": fields.SIZE,
}


def base_config(**changes) -> ConfigDict:
    """The config of an experiment: the common fields, with `changes` replacing or extending them.

    An experiment's own numbers (widths, dropout) are fields too, so that a flag can set every one of them.

    >>> base_config(batch_size=128, hidden=32).batch_size
    128
    """
    config = ConfigDict(
        {
            "seed": 0,  # everything random flows from it
            "optimizer": "adam",  # a name, or name(hyperparameter=value, ...)
            "learning_rate": config_dict.placeholder(float),  # the schedule's peak; unset: the optimizer's default
            "schedule": "constant",  # constant, linear, cosine, step, ...: the factor on the learning rate
            "weight_decay": config_dict.placeholder(float),  # of kernels and embeddings; unset: the optimizer's default
            "batch_size": 64,
            "epochs": 10.0,
            "steps": 0,  # if above 0, counts instead of epochs
            "accumulate": 1,  # a batch's gradient is the mean over so many smaller batches, one after another
            "log_every": 200,  # steps; the metrics' mean over them is what a log line shows
            "eval_every": 0,  # steps; 0: once an epoch
            "eval_batch_size": 500,  # examples evaluated at once; fewer take less memory
            "checkpoint_every": 0,  # steps; 0: after each evaluation
            "patience": 0,  # stop after so many evaluations without a better one; 0: never
            "target": "",  # e.g. accuracy>=0.99: the clock's reading when validation first reaches it
            "precision": "float32",  # or bfloat16, of the computation; parameters are float32 always
            "mesh": "",  # e.g. data:4,tensor:2; empty: all devices on the data axis
            "placement": "",  # rules before the model's, e.g. embed=data,out/kernel$=tensor+fsdp
            "zero": False,  # divide the optimizer's state over data too: less memory, a gather more
            "clip_norm": 0.0,  # of the gradient's global norm; 0: none
            "l1": 0.0,
            "l2": 0.0,
            "max_norm": 0.0,  # of each unit's incoming weights; 0: none
            "ema": 0.0,  # decay of the average of the parameters that is evaluated; 0: none
            "remat": "none",  # or dots, full: what of a block the backward pass computes anew; less memory, more time
        }
    )
    for name, value in changes.items():
        with config.unlocked():
            config[name] = value
    return config


def compute_dtype(config) -> str:
    """The dtype that models compute in; raises UserError for an unknown precision."""
    fields.check("config.precision", config.precision, FIELDS["precision"])
    return config.precision


def check(config: Mapping, own: Mapping[str, Field] | None = None, place: str = "") -> None:
    """Raise UserError for the first value that makes no sense.

    Args:
      config: all fields of an experiment.
      own: what the experiment's own fields may hold, by name; they replace those of `FIELDS`.
      place: what the message begins with, such as the name of a workload and a colon.

    >>> check(base_config(dropout=0.5), SHARED)
    >>> check(base_config(epochs=-1.0))
    Traceback (most recent call last):
    deeplearn.errors.UserError: config.epochs is -1.0; it must be at least 0
    """
    for name, value in config.items():
        check_field(name, value, own, place)
    if config["steps"] == 0 and config["epochs"] == 0:
        raise UserError(f"{place}config.epochs is {config['epochs']}; it must be above 0, or config.steps must be")
    if config["batch_size"] % config["accumulate"]:
        raise UserError(
            f"{place}config.accumulate is {config['accumulate']}; it must divide the batch size, {config['batch_size']}"
        )


def check_field(name: str, value, own: Mapping[str, Field] | None = None, place: str = "") -> None:
    """Raise UserError if a field may not hold a value; of one that no table has it must be finite. See `check`."""
    field = {**FIELDS, **(own or {})}.get(name)
    if field is None:
        fields.check_finite(f"{place}config.{name}", value)
    else:
        fields.check(f"{place}config.{name}", value, field)
