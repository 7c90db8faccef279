"""A recurrent network that predicts the next value of a sequence.

Source: Elman 1990, Finding structure in time.
Data: 1,000 synthetic sequences of 10 values, split 70/15/15; the error of repeating the last value stands beside the
model's as baseline_loss.
Command: python -m deeplearn train --config=experiments/sequence_rnn.py --workdir=runs/sequence
Measured: mean squared error 0.037 on train, 0.038 on validation, 0.042 on test, medians of seeds 0 to 4; repeating the
last value gives 0.230, 0.227 and 0.193, and no guess can be better than the noise, 0.0025. A second of training on two
CPU cores.
Published: none, the data are synthetic.
"""

from deeplearn.config import base_config, compute_dtype
from deeplearn.data.synthetic import sequences
from deeplearn.experiment import wire
from deeplearn.models.rnn import SequenceRNN
from deeplearn.tasks.regression import regression


def get_config():
    return base_config(
        cell="rnn",
        hidden=32,
        optimizer="adam",  # at its default, 0.001
        batch_size=32,
        epochs=10.0,
        target="loss<=0.05",  # our own: about a fifth of the error of repeating the last value
    )


def build(config):
    data = sequences()
    model = SequenceRNN(
        features=config.hidden, cell=config.cell, outputs=1, dtype=compute_dtype(config), remat=config.remat
    )
    task = regression(model, data.spec["inputs"].shape, baseline=lambda inputs: inputs[:, -1])
    return wire(config, task, data, model)
