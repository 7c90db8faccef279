"""A Transformer that predicts the next character of Shakespeare.

Source: Radford et al. 2019, Language models are unsupervised multitask learners; the two recipes are those of nanoGPT's
README (Karpathy 2022), which holds out the last 10 %, of which our validation and test are the halves.
Data: tiny Shakespeare, 1,115,394 characters, split 90/5/5 in their order as TFDS does; training reads windows that
begin at any character. Losses are in nats a character.
Command: python -m deeplearn train --config=experiments/shakespeare_gpt.py --workdir=runs/gpt
For a GPU: add --config.length=256 --config.width=384 --config.depth=6 --config.heads=6 --config.dropout=0.2
 --config.batch_size=64 --config.steps=5000 --config.precision=bfloat16 (not measured)
Measured: loss 1.740 +- 0.015 on validation, 1.825 +- 0.014 on test, mean and standard deviation of seeds 0 to 2; 50 to
52 s of training on two CPU cores, and 1.88 is passed after 31 to 39 s (step 1,250 or 1,500).
Published: 1.88 after about three minutes on a CPU; 1.4697 for the larger one on a GPU. PyTorch would
take 65 s for 2,000 steps at the rate of python -m deeplearn benchmark --cases=shakespeare_gpt on the same two cores.
"""

from deeplearn.config import base_config
from experiments import _gpt

FIELDS = _gpt.VARIANTS


def get_config():
    return base_config(
        dataset="tiny_shakespeare",
        tokenizer="characters",
        length=64,
        width=128,
        depth=4,
        heads=4,
        positions="learned",  # or rotary, alibi
        norm="layer",  # or rms
        mlp="gelu",  # or swiglu
        bias=False,  # as nanoGPT's: a little better and faster
        dropout=0.0,
        optimizer="adamw(b2=0.99)",  # few tokens a batch: the second moments need a longer memory
        learning_rate=0.003,  # of 0.001, 0.003 and 0.006 the best by validation
        schedule="cosine(warmup=0.05, final=0.1)",
        weight_decay=0.1,
        clip_norm=1.0,
        batch_size=12,
        steps=2000,
        log_every=100,
        eval_every=250,
        target="loss<=1.88",
    )


def build(config):
    own = ("width", "depth", "heads", "positions", "norm", "mlp", "bias", "dropout")
    return _gpt.build(config, margin=config.length - 1, **{name: config[name] for name in own})
