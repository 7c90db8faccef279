"""A recurrent network that reads a CIFAR-10 image row by row: 32 time steps of 96 numbers.

Source: Hochreiter and Schmidhuber 1997 (lstm); Cho et al. 2014 (gru); Elman 1990 (rnn). --config.cell chooses.
Data: see _cifar10.py, the recipe that the three CIFAR-10 experiments share.
Command: python -m deeplearn train --config=experiments/cifar10_rnn.py --workdir=runs/cifar10_rnn
Measured, on the first 1,000 test images, the best epoch of ten by validation, mean and standard deviation of seeds 0
to 2: lstm 53.4 +- 1.1 %, gru 56.9 +- 0.2 %, rnn 30.0 +- 1.4 %; a minute of training on two CPU cores (rnn: 20 s). By
class, gru, seed 0: airplane 63, automobile 69, bird 45, cat 33, deer 33, dog 43, frog 72, horse 70, ship 75, truck
59 %.
"""

from deeplearn.config import compute_dtype
from deeplearn.models.rnn import SequenceRNN
from experiments import _cifar10


def get_config():
    # The target is our own: what lstm and gru end a little above.
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
