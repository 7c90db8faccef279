"""GPT-2 with 124 million parameters.

Source: Radford et al. 2019, Language models are unsupervised multitask learners, table 2's smallest model; its
optimization is that of GPT-3 (Brown et al. 2020, appendix B), which the paper leaves out.
Data: any text data set that TFDS has prepared, in GPT-2's byte-pair tokens; tiny Shakespeare (0.3 million of them)
unless --config.dataset names another. Losses are in nats a token.
Command: python -m deeplearn train --config=experiments/gpt2.py --workdir=runs/gpt2
On tiny Shakespeare, which has fewer examples than this batch: add --config.batch_size=256 --config.accumulate=32
Measured: nothing yet; published, on OpenWebText: a loss of 2.85 after 600,000 steps (nanoGPT's README).
"""

from deeplearn.config import base_config
from experiments import _gpt


def get_config():
    return base_config(
        dataset="tiny_shakespeare",
        tokenizer="gpt2",
        length=1024,
        width=768,
        depth=12,
        heads=12,
        dropout=0.0,  # 0.1 in the paper; of no use where no example is seen twice
        precision="bfloat16",
        optimizer="adamw(b2=0.95)",
        learning_rate=0.0006,
        schedule="cosine(warmup=0.0033, final=0.1)",
        weight_decay=0.1,
        clip_norm=1.0,
        batch_size=512,  # half a million tokens
        accumulate=64,  # parts of 8, which up to 8 devices divide and a v5e has room for
        steps=600_000,
        log_every=10,  # no run stops sooner
        eval_every=1000,
        eval_batch_size=12,  # each example's logits take 200 MB
    )


def build(config):
    own = ("width", "depth", "heads", "dropout")
    # 50,304 rows for 50,257 tokens: what devices and a TPU's lanes divide.
    return _gpt.build(config, rows_multiple=128, **{name: config[name] for name in own})
