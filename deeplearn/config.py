"""The fields that every experiment's config has, each with its default and its reason."""

from ml_collections import ConfigDict, config_dict

from deeplearn.errors import UserError, unknown


def base_config(**fields) -> ConfigDict:
    """The config of an experiment: the common fields, with `fields` replacing or extending them.

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
            "weight_decay": config_dict.placeholder(float),  # decoupled, kernels only; unset: the optimizer's default
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
    for name, value in fields.items():
        with config.unlocked():
            config[name] = value
    return config


def compute_dtype(config) -> str:
    """The dtype that models compute in; raises UserError for a precision that there is not."""
    if config.precision not in ("float32", "bfloat16"):
        raise unknown("precision", config.precision, ("float32", "bfloat16"))
    return config.precision


def check(config) -> None:
    """Raise UserError for the first number that makes no sense."""
    for name in ("batch_size", "accumulate", "log_every", "eval_batch_size"):
        if config[name] < 1:
            raise UserError(f"config.{name} is {config[name]}; it must be at least 1")
    for name in ("steps", "eval_every", "checkpoint_every", "patience", "clip_norm", "l1", "l2", "max_norm"):
        if config[name] < 0:
            raise UserError(f"config.{name} is {config[name]}; it must not be negative (0 turns it off)")
    if config.steps == 0 and config.epochs <= 0:
        raise UserError(f"config.epochs is {config.epochs}; it must be above 0, or config.steps must be")
    if not 0 <= config.ema < 1:
        raise UserError(f"config.ema is {config.ema}; it must be in [0, 1)")
    if config.batch_size % config.accumulate:
        raise UserError(f"config.accumulate is {config.accumulate}; it must divide the batch size, {config.batch_size}")
    compute_dtype(config)
