"""A small vision Transformer on CIFAR-10: 64 patches of 4 x 4 pixels.

Source: Dosovitskiy et al. 2021, An image is worth 16x16 words, section 3.1.
Data: see _cifar10.py, the recipe that the three CIFAR-10 experiments share.
Command: python -m deeplearn train --config=experiments/cifar10_transformer.py --workdir=runs/cifar10_transformer
Measured: 68.8 and 68.6 % of the first 1,000 test images, seeds 0 and 1, the best epoch of ten by validation; at the
720 examples a second of `python -m deeplearn benchmark`, ten minutes on two CPU cores. By class, means: airplane 68,
automobile 79, bird 60, cat 44, deer 59, dog 65, frog 80, horse 69, ship 84, truck 77 %.
"""

from deeplearn.config import compute_dtype
from deeplearn.models.transformer import VisionTransformer
from experiments import _cifar10


def get_config():
    # The target is our own: what the run passes near its middle.
    return _cifar10.get_config(patch=4, width=128, depth=4, heads=4, dropout=0.0, target="accuracy>=0.6")


def build(config):
    model = VisionTransformer(
        patch=config.patch,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        classes=10,
        dropout=config.dropout,
        dtype=compute_dtype(config),
        remat=config.remat,
    )
    # The target is our own: what the run passes near its middle.
    return _cifar10.build(config, model)
