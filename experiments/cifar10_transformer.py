"""A small vision Transformer on CIFAR-10: 64 patches of 4 x 4 pixels.

Source: Dosovitskiy et al. 2021, An image is worth 16x16 words, section 3.1.
Data: see _cifar10.py, the recipe that the three CIFAR-10 experiments share.
Command: python -m deeplearn train --config=experiments/cifar10_transformer.py --workdir=runs/cifar10_transformer
Measured: 68.8 % of the first 1,000 test images, seed 0, the best epoch of ten by validation; at the 720 examples a
second of `python -m deeplearn benchmark`, ten minutes on two CPU cores. By class: airplane 68, automobile 78, bird 60,
cat 47, deer 60, dog 64, frog 81, horse 65, ship 86, truck 77 %.
"""

from deeplearn.config import compute_dtype
from deeplearn.models.transformer import VisionTransformer
from experiments import _cifar10


def get_config():
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
    return _cifar10.build(config, model)
