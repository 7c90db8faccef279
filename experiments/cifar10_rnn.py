"""A recurrent network that reads a CIFAR-10 image row by row: 32 time steps of 96 numbers.

Source: Hochreiter and Schmidhuber 1997 (lstm); Cho et al. 2014 (gru); Elman 1990 (rnn). --config.cell chooses.
Data: see _cifar10.py, the recipe that the three CIFAR-10 experiments share.
Command: python -m deeplearn train --config=experiments/cifar10_rnn.py --workdir=runs/cifar10_rnn
Measured: not yet.
"""

from deeplearn.config import compute_dtype
from deeplearn.models.rnn import SequenceRNN
from experiments import _cifar10


def get_config():
    return _cifar10.get_config(cell="lstm", hidden=128, dropout=0.0, target="accuracy>=0.5")


def build(config):
    model = SequenceRNN(
        features=config.hidden,
        cell=config.cell,
        outputs=10,
        dropout=config.dropout,
        dtype=compute_dtype(config),
        remat=config.remat,
    )
    return _cifar10.build(config, model)
