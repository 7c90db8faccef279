import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplearn import experiment, schedules
from deeplearn.config import base_config
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.data.tokenizers import Tokenizer
from deeplearn.errors import UserError
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.models.mlp import MLP
from deeplearn.models.rnn import LanguageRNN, SequenceRNN
from deeplearn.tasks.regression import regression


def data(size, shape=(3,)):
    split = Arrays({"inputs": np.zeros((size, *shape), np.float32), "targets": np.zeros((size, 1), np.float32)})
    return Data("zeros", split, split, split)


def wire(size=100, **fields):
    return experiment.wire(base_config(**fields), regression(nn.Dense(1), (3,)), data(size))


@pytest.mark.parametrize(
    "text, target",
    [
        ("", None),
        ("accuracy>=0.99", experiment.Target("accuracy", True, 0.99)),
        (" loss <= 1e-3 ", experiment.Target("loss", False, 1e-3)),
    ],
)
def test_target(text, target):
    assert experiment.parse_target(text) == target


@pytest.mark.parametrize("text", ["accuracy", "accuracy=0.9", "accuracy>=high", ">=0.9", "loss<=1e", "loss<=nan"])
def test_target_of_another_form(text):
    with pytest.raises(UserError, match="METRIC>=NUMBER"):
        experiment.parse_target(text)


@pytest.mark.parametrize("text", ["accuracy>=1e999", "loss<=-1e999"])
def test_a_target_that_is_not_finite(text):
    with pytest.raises(UserError, match="the number in target .* is -?inf; it must be a finite number"):
        experiment.parse_target(text)


def test_a_target_that_is_not_evaluated():
    with pytest.raises(UserError, match="'f1' is not evaluated; there are: loss"):
        wire(target="f1>=0.5")
    assert wire(target="loss<=0.5").target.metric == "loss"


@pytest.mark.parametrize("value, rises, falls", [(0.4, False, True), (0.5, True, True), (0.6, True, False)])
def test_reached(value, rises, falls):
    assert experiment.Target("x", True, 0.5).reached(value) == rises
    assert experiment.Target("x", False, 0.5).reached(value) == falls


@pytest.mark.parametrize(
    "fields, batch_size, steps, eval_every, log_every, checkpoint_every",
    [
        ({"batch_size": 32, "epochs": 2.0}, 32, 7, 4, 4, 4),  # ceil(200 / 32) steps, ceil(100 / 32) an epoch
        ({"batch_size": 32, "steps": 1000, "eval_every": 100}, 32, 1000, 100, 100, 100),
        ({"batch_size": 32, "steps": 1000, "eval_every": 500, "log_every": 50}, 32, 1000, 500, 50, 500),
        ({"batch_size": 32, "steps": 10, "checkpoint_every": 3}, 32, 10, 4, 4, 3),
        ({"batch_size": 100}, 100, 10, 1, 1, 1),
        ({"optimizer": "gradient_descent", "epochs": 3.0}, 100, 3, 1, 1, 1),
        ({"optimizer": "sgd", "epochs": 3.0}, 1, 300, 100, 100, 100),
    ],
)
def test_budget(fields, batch_size, steps, eval_every, log_every, checkpoint_every):
    e = wire(**fields)
    assert (e.batch_size, e.steps) == (batch_size, steps)
    assert e.config.batch_size == batch_size  # what the identity and the manifest hold
    assert (e.eval_every, e.log_every, e.checkpoint_every) == (eval_every, log_every, checkpoint_every)


@pytest.mark.parametrize(
    "fields, examples",
    [({"optimizer": "gradient_descent", "accumulate": 8}, 100), ({"optimizer": "sgd", "accumulate": 2}, 1)],
)
def test_parts_that_a_batch_does_not_have(fields, examples):
    said = f"it must divide the batch of the optimizer {fields['optimizer']}, which has {examples} examples"
    with pytest.raises(UserError, match=said):
        wire(**fields)


@pytest.mark.parametrize(
    "fields, remedy",
    [
        ({"batch_size": 101}, "--config.batch_size=100 fits"),
        ({"batch_size": 512, "accumulate": 16}, "--config.batch_size=96 fits"),
        ({"batch_size": 512, "accumulate": 128}, "--config.batch_size=100 --config.accumulate=1 fits"),
    ],
)
def test_a_batch_larger_than_the_training_set(fields, remedy):
    with pytest.raises(UserError, match=f"is {fields['batch_size']}, and there are 100 training examples; {remedy}"):
        wire(**fields)


def labelled(labels):
    split = Arrays({"image": np.zeros((len(labels), 2, 2, 1), np.uint8), "label": np.array(labels, np.int32)})
    return Data("made by hand", split, split, split, ("a", "b", "c"))


def tokens(most):
    split = Arrays({"tokens": np.full((4, 5), most, np.int32)})
    return Data("made by hand", split, split, split)


@pytest.mark.parametrize(
    "data, model, tokenizer, said",
    [
        (labelled([0, 2, 1, 3]), MLP((4,), 3), None, "made by hand train: example 3 has label 3, outside 0 to 2"),
        (labelled([0, 2, -1, 1]), MLP((4,), 3), None, "example 2 has label -1, outside 0 to 2"),
        (tokens(7), LanguageRNN(7, 4), None, "example 0 has token 7, outside 0 to 6; use the tokenizer of the model"),
        (tokens(7), GPT(Architecture(7, 4, 8, 1, 2)), None, "has token 7, outside 0 to 6"),
        (tokens(7), GPT(Architecture(8, 4, 8, 1, 2)), Tokenizer("small", 6, None, None), "token 7, outside 0 to 5"),
        (tokens(-1), LanguageRNN(7, 4), None, "has token -1, outside 0 to 6"),
    ],
)
def test_data_of_ones_own_is_checked(data, model, tokenizer, said):
    """Labels and tokens that do not exist: JAX would take the nearest that do."""
    with pytest.raises(UserError, match=said):
        experiment.wire(base_config(batch_size=2), None, data, model, tokenizer=tokenizer)


@pytest.mark.parametrize("epochs", [1e8, 1e300])
def test_more_steps_than_a_counter_counts(epochs):
    with pytest.raises(UserError, match="a run has at most 2147483647 steps"):
        wire(batch_size=1, epochs=epochs)


def test_an_optimizer_of_ones_own():
    from deeplearn import optimizers

    mine = optimizers.make("adam", learning_rate=0.5)
    wired = experiment.wire(base_config(batch_size=5), regression(nn.Dense(1), (3,)), data(10), optimizer=mine)
    assert wired.optimizer is mine


def test_a_plateau_is_told_how_many_steps_an_epoch_has(monkeypatch):
    told, make = [], schedules.make
    monkeypatch.setattr(schedules, "make", lambda *arguments: told.append(arguments) or make(*arguments))
    wire(batch_size=32, epochs=5.0, schedule="plateau")
    assert told == [("plateau", 16, 4)]


@pytest.mark.parametrize("fields, penalty", [({"l1": 0.5}, 0.5 * 3 * 4), ({"l2": 0.5}, 0.25 * 3 * 4**2)], ids=str)
def test_each_penalty_has_its_own_factor(fields, penalty):
    wired = experiment.wire(base_config(batch_size=5, **fields), regression(MLP((), 1), (3,)), data(10))
    params = jax.tree.map(lambda x: jnp.full_like(x, 4), wired.task.init(jax.random.key(0))[0])
    batch = {name: jnp.asarray(x) for name, x in wired.data.train.__getitems__([0, 1]).items()}
    _, (_, found) = wired.task.loss(params, {}, batch, jax.random.key(0))
    assert found["penalty"] == penalty


RECURRENT = {"recurrent_kernel", "input_kernel", "kernel"}  # and the kernel of the output layer


@pytest.mark.parametrize("fields", [{"weight_decay": 0.5}, {"l2": 0.5}, {"l1": 0.5}, {"max_norm": 1e-3}])
def test_the_roles_come_from_the_loss(fields):
    """Of a constant loss, only what regularizes changes parameters: all kernels, the recurrent ones too, no bias."""
    task = regression(SequenceRNN(4, "gru", outputs=1), (5, 3))
    constant = task._replace(loss=lambda *args: (0.0 * task.loss(*args)[0], task.loss(*args)[1]))
    wired = experiment.wire(base_config(optimizer="minibatch_sgd", batch_size=5, **fields), constant, data(10, (5, 3)))
    key = jax.random.key(0)
    params, state = task.init(key)
    params = jax.tree.map(lambda x: x + 1.0, params)
    batch = {name: jnp.asarray(x) for name, x in wired.data.train.__getitems__([0, 1]).items()}
    grads = jax.grad(lambda params: wired.task.loss(params, state, batch, key)[0])(params)
    updates, _ = wired.optimizer.update(grads, wired.optimizer.init(params), params)
    changed = {path[-1].key for path, x in jax.tree_util.tree_leaves_with_path(updates) if np.any(x != 0)}
    assert changed == RECURRENT


@pytest.mark.parametrize(
    "path, said",
    [
        ("digit_mlp", "unknown experiment 'digit_mlp'; did you mean digits_mlp"),
        ("zzz", "unknown experiment 'zzz'; there are: cifar10_cnn, "),
        (
            "no/such/folder/digits_mlp.py",
            "no file no/such/.*; the built-in experiment digits_mlp is named without a path",
        ),
        ("digits_mlp.py", "there is no file digits_mlp.py; the built-in experiment digits_mlp"),
        ("no/digits_mlp", "there is no file no/digits_mlp; the built-in experiment digits_mlp"),
        ("experiments/mnist_cn.py", "there is no file .*; the built-in experiment mnist_cnn"),
        ("zzz.py", "there is no file zzz.py; built-in ones are named without a path: cifar10_cnn, "),
        ("..", "there is no file|unknown experiment"),
        ("", "unknown experiment ''"),
        ("/", "there is no file /"),
    ],
)
def test_unknown_experiment(path, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        experiment.find(path)


def test_a_name_is_a_built_in_experiment_and_a_path_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "digits_mlp.py").write_text("")
    assert experiment.find("digits_mlp") == experiment.HOME / "digits_mlp.py"
    for path in ("digits_mlp.py", "./digits_mlp.py", "~/digits_mlp.py", str(tmp_path / "digits_mlp.py")):
        assert experiment.find(path).resolve() == tmp_path / "digits_mlp.py"


def test_a_file_that_is_no_experiment(tmp_path):
    (tmp_path / "a.py").write_text("def get_config(): pass\n")
    with pytest.raises(UserError, match=r"no function build\(\)"):
        experiment.load(str(tmp_path / "a.py"))
