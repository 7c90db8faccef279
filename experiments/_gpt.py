"""What the language models have in common: a text in windows, and a GPT that reads them."""

from deeplearn.config import compute_dtype
from deeplearn.data import text, tokenizers
from deeplearn.experiment import wire
from deeplearn.models.gpt import AXES, FIELDS, GPT, Architecture
from deeplearn.tasks.language_modelling import language_modelling

VARIANTS = {name: FIELDS[name] for name in ("positions", "norm", "mlp")}  # what an experiment's fields may hold


def build(config, margin=0, **architecture):
    tokenizer = tokenizers.load(config.tokenizer, config.dataset)
    data = text.load(config.dataset, length=config.length, tokenizer=tokenizer, margin=margin)
    model = GPT(
        Architecture(
            vocabulary=tokenizer.vocabulary_size,
            length=config.length,
            dtype=compute_dtype(config),
            remat=config.remat,
            **architecture,
        )
    )
    task = language_modelling(model, config.length)
    return wire(config, task, data, model, rules=AXES, tokenizer=tokenizer)
