import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn import metrics
from deeplearn.errors import UserError
from deeplearn.models.rnn import LanguageRNN
from deeplearn.tasks.language_modelling import CROP, language_modelling

VOCABULARY, LENGTH = 7, 6


class Bigram(nn.Module):
    """Logits of a token alone, in the dtype that is asked for; dropout and batch norm, so that rng and state matter."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens, train=False):
        x = nn.Embed(VOCABULARY, 5)(tokens)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(VOCABULARY, dtype=self.dtype)(nn.Dropout(0.5, deterministic=not train)(x))


def batch(rows=5, dtype=np.uint8):
    return {"tokens": jnp.array(np.random.RandomState(0).randint(0, VOCABULARY, (rows, LENGTH + 1)), dtype)}


@pytest.fixture
def task():
    return language_modelling(Bigram(), LENGTH)


def expected(task, params, model_state, tokens):
    """Loss and accuracy, one token at a time, in NumPy."""
    logits = np.asarray(task.predict(params, model_state, {"tokens": tokens}), np.float64)
    each = []
    for b, t in np.ndindex(len(tokens), LENGTH):
        scores, target = logits[b, t], int(tokens[b, t + 1])
        each.append((np.log(np.exp(scores).sum()) - scores[target], scores.argmax() == target))
    return np.mean(each, axis=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_evaluation(task, key, dtype):
    """Padding rows count for nothing, whatever is in them."""
    params, model_state = task.init(key)
    whole = batch(dtype=dtype)
    tokens = whole["tokens"]
    padded = {"tokens": jnp.concatenate([tokens, tokens[:2] * 0]), "mask": jnp.array([1.0] * 5 + [0.0] * 2)}
    loss, accuracy = expected(task, params, model_state, np.asarray(tokens))
    for rows in (whole, padded):
        found = metrics.result(task.evaluate(params, model_state, rows, key))
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 3, LENGTH])
@pytest.mark.parametrize("token", [VOCABULARY, 255, -1])
def test_a_token_that_does_not_exist_makes_the_loss_nan(task, key, place, token):
    """As an input, as a target and as the last target alone."""
    params, model_state = task.init(key)
    whole = batch(dtype=np.int32)
    wrong = {"tokens": whole["tokens"].at[1, place].set(token)}
    if place == LENGTH:  # the last is a target alone
        assert jnp.isnan(metrics.result(task.evaluate(params, model_state, wrong, key))["loss"])
    model = language_modelling(LanguageRNN(VOCABULARY, 4), LENGTH)
    params, model_state = model.init(key)
    assert jnp.isnan(model.loss(params, model_state, wrong, key)[0])
    assert jnp.isnan(metrics.result(model.evaluate(params, model_state, wrong, key))["loss"])
    assert not jnp.isnan(model.loss(params, model_state, whole, key)[0])


@pytest.mark.parametrize("tokens", [LENGTH, 1])
def test_rows_that_are_too_short(task, key, tokens):
    params, model_state = task.init(key)
    with pytest.raises(UserError, match=f"the rows have {tokens} tokens; with a length of 6 they need 7"):
        task.loss(params, model_state, {"tokens": batch()["tokens"][:, :tokens]}, key)


def test_training(task, key):
    params, model_state = task.init(key)
    loss, (new_state, found) = task.loss(params, model_state, batch(), key)
    assert loss.dtype == jnp.float32 and loss.shape == () and 0 <= found["accuracy"] <= 1
    assert jax.tree.structure(new_state) == jax.tree.structure(model_state) and set(model_state) == {"batch_stats"}
    assert task.loss(params, model_state, batch(), key)[0] == loss  # the same rng, the same dropout
    assert task.loss(params, model_state, batch(), jax.random.fold_in(key, 1))[0] != loss


def test_the_training_loss_is_that_of_evaluation(key):
    """Of a model that does in training what it does in evaluation."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, tokens, train=False):
            return nn.Embed(VOCABULARY, VOCABULARY)(tokens)

    task = language_modelling(Plain(), LENGTH)
    params, model_state = task.init(key)
    assert model_state == {}
    loss, (_, found) = task.loss(params, {}, batch(), key)
    values = metrics.result(task.evaluate(params, {}, batch(), key))
    np.testing.assert_allclose(loss, values["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"], values["accuracy"], rtol=1e-6)


def test_the_last_token_is_asked_for_and_never_read(task, key):
    params, model_state = task.init(key)
    rows = batch()
    other = {"tokens": rows["tokens"].at[:, -1].add(1)}
    a, b = (task.predict(params, model_state, x) for x in (rows, other))
    assert a.shape == (5, LENGTH, VOCABULARY)
    np.testing.assert_array_equal(a, b)
    a, b = (metrics.result(task.evaluate(params, model_state, x, key))["loss"] for x in (rows, other))
    assert a != b


def test_a_crop_may_begin_at_every_place_that_leaves_enough_tokens():
    """The last one too. The tokens are their own places, so that the first one says where a crop begins."""
    seen = []

    class Reads(nn.Module):
        @nn.compact
        def __call__(self, tokens, train=False):
            if not self.is_initializing():
                jax.debug.callback(lambda first: seen.extend(first.tolist()), tokens[:, 0], ordered=True)
            return nn.Embed(16, 16)(tokens)

    task = language_modelling(Reads(), LENGTH)
    params, model_state = task.init(jax.random.key(0))
    rows = {"tokens": jnp.tile(jnp.arange(LENGTH + 4, dtype=jnp.uint8), (64, 1))}  # 4 places
    task.loss(params, model_state, rows, jax.random.key(1))
    jax.effects_barrier()
    assert set(seen) == {0, 1, 2, 3}
    own = jax.random.fold_in(jax.random.key(1), CROP)  # dropout has the step's key itself
    assert seen == jax.random.randint(own, (64, 1), 0, 4).ravel().tolist()


def test_sums_add_up_over_batches(task, key):
    params, model_state = task.init(key)
    tokens = batch()["tokens"]
    whole = task.evaluate(params, model_state, {"tokens": tokens}, key)
    parts = [task.evaluate(params, model_state, {"tokens": part}, key) for part in (tokens[:2], tokens[2:])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, metrics.add(*parts))


def test_logits_of_bfloat16_give_a_loss_in_float32(key):
    task = language_modelling(Bigram("bfloat16"), LENGTH)
    params, model_state = task.init(key)
    assert task.predict(params, model_state, batch()).dtype == jnp.bfloat16
    assert task.loss(params, model_state, batch(), key)[0].dtype == jnp.float32
    found = task.evaluate(params, model_state, batch(), key)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


class Plain(nn.Module):
    """A bigram's logits, those of one row more than there are tokens -inf."""

    @nn.compact
    def __call__(self, tokens, train=False):
        logits = nn.Embed(VOCABULARY, VOCABULARY + 1)(tokens)
        return jnp.where((jnp.arange(VOCABULARY + 1) < VOCABULARY)[None, None], logits, -jnp.inf)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"ignore_label": 3},
        {"ignore_label": -100, "label_smoothing": 0.2},
        {"ignore_label": 0, "class_weights": (1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0, 1.0), "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_tokens_with_weights(options, key):
    """Against PyTorch's mean over the tokens that count; rows have different numbers of them."""
    torch = pytest.importorskip("torch")
    task = language_modelling(Plain(), LENGTH, **options)
    params, model_state = task.init(key)
    rows = batch(dtype=np.int32)
    ignored, smoothing = options.get("ignore_label", -100), options.get("label_smoothing", 0.0)
    if "ignore_label" in options:
        rows["tokens"] = rows["tokens"].at[0, 2:].set(ignored).at[3, -1].set(ignored)
    targets = np.asarray(rows["tokens"][:, 1:], np.int64)
    logits = np.array(task.predict(params, model_state, rows), np.float64)[..., :VOCABULARY]

    def theirs(smoothing):
        weights = options.get("class_weights")
        weight = None if weights is None else torch.tensor(weights[:VOCABULARY], dtype=torch.float64)
        x, y = torch.tensor(logits).reshape(-1, VOCABULARY), torch.tensor(targets).reshape(-1)
        return torch.nn.functional.cross_entropy(x, y, weight, ignore_index=ignored, label_smoothing=smoothing).item()

    accuracy = (logits.argmax(-1) == targets)[targets != ignored].mean()
    padded = {"tokens": jnp.concatenate([rows["tokens"], rows["tokens"][:2]]), "mask": jnp.array([1.0] * 5 + [0.0] * 2)}
    parts = [jax.tree.map(lambda x, s=s: x[s], padded) for s in (slice(0, 2), slice(2, 7))]
    sums = metrics.add(*(task.evaluate(params, model_state, part, key) for part in parts))
    found = metrics.result(sums)
    np.testing.assert_allclose(found["loss"], theirs(0.0), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-6)
    loss, (_, trained) = task.loss(params, model_state, rows, key)
    np.testing.assert_allclose(metrics.divided(loss), theirs(smoothing), rtol=1e-5)
    np.testing.assert_allclose(metrics.divided(trained["accuracy"]), accuracy, rtol=1e-6)


def test_a_negative_token_that_is_ignored_is_read_as_0(key):
    task = language_modelling(Plain(), LENGTH, ignore_label=-100)
    params, model_state = task.init(key)
    rows = batch(dtype=np.int32)["tokens"]
    logits = [task.predict(params, model_state, {"tokens": rows.at[1, 2].set(token)}) for token in (-100, 0)]
    np.testing.assert_array_equal(*logits)


def test_class_weights_are_as_many_as_logits(key):
    task = language_modelling(Plain(), LENGTH, class_weights=(1.0,) * VOCABULARY)
    params, model_state = task.init(key)
    with pytest.raises(UserError, match=f"{VOCABULARY} class weights for {VOCABULARY + 1} classes"):
        task.loss(params, model_state, batch(), key)
