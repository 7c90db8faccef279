"""Dropout (Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting)."""

import flax.linen as nn

from deeplearn import fields


class Dropout(nn.Dropout):
    """Flax's, with the same bits, for a rate in [0, 1); UserError for another, which Flax would train with.

    >>> Dropout(1.5)
    Traceback (most recent call last):
    deeplearn.errors.UserError: dropout is 1.5; it must be in [0, 1)
    """

    def __post_init__(self):
        fields.check("dropout", self.rate, fields.FRACTION)
        super().__post_init__()
