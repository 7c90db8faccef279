"""Language modelling: the cross-entropy of each next token."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deeplearn import losses
from deeplearn.errors import UserError
from deeplearn.layers.sharding import by_positions
from deeplearn.metrics import Mean
from deeplearn.tasks.task import Task

CROP = 1  # folded into a step's key, for the places


def language_modelling(
    model,
    length: int,
    *,
    label_smoothing: float = 0.0,
    ignore_label: int | None = None,
    class_weights: Sequence[float] | None = None,
) -> Task:
    """The task of a Flax model that maps tokens (B, T) to logits of the tokens that follow, (B, T, vocabulary).

    A batch has `batch["tokens"]`, (B, T + 1) integers, T = `length`: the model reads all but the last and is asked for
    all but the first. Of longer rows training takes T + 1 from anywhere, another place at each step, and evaluation the
    first. Trains on the mean over B and T of

        -log softmax(logits[b, t])[tokens[b, t + 1]]

    in nats a token; evaluates the same as loss, and accuracy, the fraction of the tokens that were the likeliest. A
    token that does not exist makes the loss NaN. The options are those of `losses.cross_entropy`, and their mean that
    of `classification`.

    Args:
      model: the Flax module.
      length: T.
      label_smoothing: in training alone.
      ignore_label: a token that is never asked for, such as padding. If it is negative the model reads it as token 0.
      class_weights: a weight for each logit, in the loss of training and evaluation; the accuracy is without weights.

    Raises:
      UserError: options that make no sense; of class weights when the model is traced.

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
            starts = jax.random.randint(rng, (tokens.shape[0], 1), 0, beyond + 1, jnp.int32)
            tokens = jnp.take_along_axis(tokens, starts + jnp.arange(length + 1, dtype=jnp.int32)[None], axis=1)
        inputs = tokens[:, :length]
        if ignore_label is not None and ignore_label < 0:
            inputs = jnp.where(inputs == ignore_label, 0, inputs)
        return by_positions(inputs), by_positions(tokens[:, 1 : length + 1])

    def loss(params, model_state, batch, rng):
        inputs, targets = parts(batch, jax.random.fold_in(rng, CROP))
        logits, model_state = model.apply(
            {"params": params, **model_state}, inputs, train=True, rngs={"dropout": rng}, mutable=list(model_state)
        )
        losses.check_options(label_smoothing, class_weights, logits.shape[-1])
        value, accuracy = losses.over_batch(logits, targets, label_smoothing, ignore_label, class_weights)
        return value, (model_state, {"accuracy": accuracy})

    def predict(params, model_state, batch):
        return model.apply({"params": params, **model_state}, parts(batch)[0])

    def evaluate(params, model_state, batch, rng):
        del rng
        logits, targets = predict(params, model_state, batch), parts(batch)[1]
        mask = batch.get("mask", jnp.ones(logits.shape[0], jnp.float32))  # (B,)

        def mean(each, weights):  # over tokens; counts are in rows, which float32 counts further
            return Mean((each.mean(axis=-1) * mask).sum(), (weights.mean(axis=-1) * mask).sum())

        values = losses.cross_entropy(logits, targets, 0.0, ignore_label, class_weights)
        counted = losses.label_weights(targets, ignore_label)
        return {
            "loss": mean(values, losses.label_weights(targets, ignore_label, class_weights)),
            "accuracy": mean(losses.hits(logits, targets) * counted, counted),
        }

    return Task(init, loss, evaluate, predict)
