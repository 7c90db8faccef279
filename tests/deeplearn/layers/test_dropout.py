import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn.errors import UserError
from deeplearn.layers.dropout import Dropout
from deeplearn.models.cnn import CNN
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.models.mlp import MLP
from deeplearn.models.rnn import LanguageRNN, SequenceRNN
from deeplearn.models.transformer import VisionTransformer

IMAGES, TOKENS = jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 4), jnp.int32)
MODELS = {
    "mlp": lambda rate: (MLP((4,), dropout=rate), IMAGES),
    "cnn": lambda rate: (CNN((4,), 4, dropout=rate), IMAGES),
    "sequence": lambda rate: (SequenceRNN(4, dropout=rate), IMAGES),
    "language": lambda rate: (LanguageRNN(5, 4, dropout=rate), TOKENS),
    "vit": lambda rate: (VisionTransformer(width=8, depth=1, dropout=rate), IMAGES),
    "gpt": lambda rate: (GPT(Architecture(5, 4, 8, 1, 2, dropout=rate)), TOKENS),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_refuses_a_rate_that_makes_no_sense(name, train):
    for rate in (1.5, -0.5, 20, 1.0, math.nan, -1e-9, True, "0.1"):
        model, x = MODELS[name](rate)
        with pytest.raises(UserError, match="dropout is .*; it must be .*in "):
            jax.eval_shape(lambda key, model=model, x=x: model.init({"params": key, "dropout": key}, x, train), KEY)
    for rate in (0, 0.0, 0.999):
        model, x = MODELS[name](rate)
        jax.eval_shape(lambda key, model=model, x=x: model.init({"params": key, "dropout": key}, x, train), KEY)


KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_the_bits_are_those_of_flax(rate):
    class Net(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            return self.layer(rate)(nn.Dense(64)(x), deterministic=False)

    x = jnp.ones((3, 5))
    variables = Net(Dropout).init({"params": KEY, "dropout": KEY}, x)
    ours, flax = (Net(layer).apply(variables, x, rngs={"dropout": KEY}) for layer in (Dropout, nn.Dropout))
    np.testing.assert_array_equal(ours, flax)
    assert bool((ours == 0).any()) == (rate > 0)
