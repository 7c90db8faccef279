"""A convolutional network with batch norm on CIFAR-10.

Three blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 max pooling (32, 64 and 128 channels), a hidden layer.
Source: Simonyan and Zisserman 2015, section 2; Ioffe and Szegedy 2015.
Data: see _cifar10.py, the recipe that the three CIFAR-10 experiments share.
Command: python -m deeplearn train --config=experiments/cifar10_cnn.py --workdir=runs/cifar10_cnn
Measured: 81.6 +- 0.5 % of the first 1,000 test images, mean and standard deviation of seeds 0 to 2, the best epoch of
ten by validation; three and a half minutes of training on two CPU cores. By class, means: airplane 81, automobile 93,
bird 73, cat 61, deer 79, dog 77, frog 87, horse 86, ship 92, truck 87 %.
"""

from deeplearn.config import compute_dtype
from deeplearn.models.cnn import CNN
from experiments import _cifar10


def get_config():
    return _cifar10.get_config(channels=(32, 64, 128), hidden=256, dropout=0.0, batch_norm=True)


def build(config):
    model = CNN(
        channels=config.channels,
        hidden=config.hidden,
        classes=10,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
        dtype=compute_dtype(config),
        remat=config.remat,
    )
    return _cifar10.build(config, model)
