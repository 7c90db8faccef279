"""Language modelling: the cross-entropy of each next token."""

import jax
import jax.numpy as jnp

from deeplearn import losses
from deeplearn.errors import UserError
from deeplearn.layers.indices import in_range
from deeplearn.layers.sharding import by_positions
from deeplearn.metrics import Mean
from deeplearn.tasks.task import Task

CROP = 1  # folded into a step's key, for the places


def language_modelling(model, length: int) -> Task:
    """The task of a Flax model that maps tokens (B, T) to logits of the tokens that follow, (B, T, vocabulary).

    A batch has `batch["tokens"]`, (B, T + 1) integers, T = `length`: the model reads all but the last and is asked for
    all but the first. Of longer rows training takes T + 1 from anywhere, another place at each step, and evaluation the
    first. Trains on the mean over B and T of

        -log softmax(logits[b, t])[tokens[b, t + 1]]

    in nats a token; evaluates the same as loss, and accuracy, the fraction of the tokens that were the likeliest. A
    token that does not exist makes the loss NaN.

    >>> from deeplearn.models.rnn import LanguageRNN
    >>> task = language_modelling(LanguageRNN(vocabulary=65), 64)
    """

    def init(rng):
        variables = dict(model.init({"params": rng, "dropout": rng}, jnp.zeros((1, length), jnp.int32)))
        return variables.pop("params"), variables

    def parts(batch, rng=None):
        tokens = batch["tokens"].astype(jnp.int32)  # (B, T + 1 or more); on the device they may lie as bytes
        beyond = tokens.shape[1] - (length + 1)
        if beyond < 0:
            raise UserError(f"the rows have {tokens.shape[1]} tokens; with a length of {length} they need {length + 1}")
        if beyond and rng is not None:
            starts = jax.random.randint(rng, (tokens.shape[0], 1), 0, beyond + 1)
            tokens = jnp.take_along_axis(tokens, starts + jnp.arange(length + 1)[None], axis=1)
        return by_positions(tokens[:, :length]), by_positions(tokens[:, 1 : length + 1])

    def cross_entropy(logits, targets):
        return losses.cross_entropy(logits, in_range(targets, logits.shape[-1]))  # (B, T)

    def hits(logits, targets):
        return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)  # (B, T)

    def loss(params, model_state, batch, rng):
        inputs, targets = parts(batch, jax.random.fold_in(rng, CROP))
        logits, model_state = model.apply(
            {"params": params, **model_state}, inputs, train=True, rngs={"dropout": rng}, mutable=list(model_state)
        )
        value = cross_entropy(logits, targets).mean()
        return value, (model_state, {"accuracy": hits(logits, targets).mean()})

    def predict(params, model_state, batch):
        return model.apply({"params": params, **model_state}, parts(batch)[0])

    def evaluate(params, model_state, batch, rng):
        del rng
        logits, targets = predict(params, model_state, batch), parts(batch)[1]
        mask = batch.get("mask", jnp.ones(logits.shape[0], jnp.float32))  # (B,)

        def mean(each):  # all rows have as many tokens, so that the mean over rows is the mean over tokens
            return Mean((each.mean(axis=-1) * mask).sum(), mask.sum())

        return {"loss": mean(cross_entropy(logits, targets)), "accuracy": mean(hits(logits, targets))}

    return Task(init, loss, evaluate, predict)
