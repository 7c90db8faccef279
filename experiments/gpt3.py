"""GPT-3 in its eight sizes, from 125 million parameters to 175 billion.

Source: Brown et al. 2020, Language models are few-shot learners, table 2.1 and appendix B. What differs: all layers
attend densely, where every other one of the paper's is banded; the rate falls until the end and not until 260 of the
300 billion tokens; batches have their size from the start and do not grow to it.
Data: as for gpt2.py; the paper's are not public.
Command: python -m deeplearn train --config=experiments/gpt3.py --config.size=125m --workdir=runs/gpt3
On tiny Shakespeare, which has fewer examples than the table's batch: add --config.batch_size=128 --config.accumulate=16
Measured: parameter counts alone, against the table.
"""

from typing import NamedTuple

from ml_collections import ConfigDict, config_dict

from deeplearn import fields
from deeplearn.config import base_config
from experiments import _gpt


class Size(NamedTuple):
    """A row of table 2.1; batches in tokens."""

    parameters: float
    depth: int
    width: int
    heads: int
    batch: float
    learning_rate: float


SIZES = {
    "125m": Size(125e6, 12, 768, 12, 0.5e6, 6.0e-4),
    "350m": Size(350e6, 24, 1024, 16, 0.5e6, 3.0e-4),
    "760m": Size(760e6, 24, 1536, 16, 0.5e6, 2.5e-4),
    "1.3b": Size(1.3e9, 24, 2048, 16, 1e6, 2.0e-4),  # the table's 24 heads of 128 do not make 2048
    "2.7b": Size(2.7e9, 32, 2560, 32, 1e6, 1.6e-4),
    "6.7b": Size(6.7e9, 32, 4096, 32, 2e6, 1.2e-4),
    "13b": Size(13e9, 40, 5120, 40, 2e6, 1.0e-4),  # the table's 5140 is not 40 heads of 128
    "175b": Size(175e9, 96, 12288, 96, 3.2e6, 0.6e-4),
}


FIELDS = {
    "size": fields.Field(str, choices=tuple(SIZES)),
    "batch_size": fields.OPTIONAL_COUNT._replace(note="0: the table's"),
    "steps": fields.OPTIONAL_COUNT._replace(note="0: the paper's"),
}


def get_config():
    return base_config(
        size="125m",
        dataset="tiny_shakespeare",
        tokenizer="gpt2",
        length=2048,
        remat="dots",
        precision="bfloat16",
        optimizer="adamw(b2=0.95)",
        learning_rate=config_dict.placeholder(float),  # unset: the table's
        schedule="cosine(warmup=0.00125, final=0.1)",  # 375 million of 300 billion tokens
        weight_decay=0.1,
        clip_norm=1.0,
        batch_size=0,  # 0: the table's
        accumulate=32,  # the logits of a whole batch take 100 GB and more
        steps=0,  # 0: the paper's 300 billion tokens
        log_every=1,  # no run stops sooner, and a step of the largest is long
        eval_every=1000,
        checkpoint_every=100,
        eval_batch_size=8,  # each example's logits take 400 MB
    )


def build(config):
    fields.check("config.size", config.size, FIELDS["size"])
    size = SIZES[config.size]
    config = ConfigDict(config)
    config.learning_rate = size.learning_rate if config.learning_rate is None else config.learning_rate
    config.batch_size = config.batch_size or 128 * max(1, round(size.batch / config.length / 128))
    config.steps = config.steps or round(300e9 / config.batch_size / config.length)
    # 50,304 rows for 50,257 tokens: what devices and a TPU's lanes divide.
    return _gpt.build(config, rows_multiple=128, width=size.width, depth=size.depth, heads=size.heads)
