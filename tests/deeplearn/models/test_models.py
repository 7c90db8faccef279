"""Every model: shapes and dtypes, sizes, dropout, recomputation, lanes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn.errors import UserError
from deeplearn.models.cnn import CNN
from deeplearn.models.mlp import MLP
from deeplearn.models.mobilenet import MobileNet
from deeplearn.models.resnet import ResNet
from deeplearn.models.rnn import LanguageRNN, SequenceRNN
from deeplearn.models.transformer import VisionTransformer, patches

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster

MODELS = {  # small ones, and the shape of an example; of one axis: that many tokens, each with an output
    "mlp": (MLP((16,), dropout=0.5), (4, 4, 1)),
    "cnn": (CNN((4,), hidden=8, dropout=0.5), (4, 4, 1)),
    "cnn with batch norm": (CNN((4,), hidden=8, dropout=0.5, batch_norm=True), (4, 4, 1)),
    "rnn": (SequenceRNN(8, "rnn", outputs=10, layers=2, dropout=0.5), (5, 3)),
    "lstm": (SequenceRNN(8, "lstm", outputs=10, dropout=0.5), (4, 4, 1)),
    "gru": (SequenceRNN(8, "gru", outputs=10, dropout=0.5), (5, 3)),
    "language": (LanguageRNN(10, 8, layers=2, dropout=0.5), (6,)),
    "transformer": (VisionTransformer(4, width=16, depth=2, heads=2, dropout=0.5), (8, 8, 3)),
    "resnet": (ResNet(depth=8, width=4), (8, 8, 3)),
    "mobilenet": (MobileNet(width=0.0625, classes=10), (32, 32, 3)),
}
DROPOUT = [name for name, (model, _) in MODELS.items() if hasattr(model, "dropout")]


def examples(shape):
    """Three of them."""
    if len(shape) == 1:
        return jax.random.randint(jax.random.key(1), (3, *shape), 0, 10)
    return jax.random.normal(jax.random.key(1), (3, *shape))


def setup(name, **fields):
    model, shape = MODELS[name]
    model, x = model.clone(**fields), examples(shape)
    variables = dict(jit(model.init)(jax.random.key(0), x))
    return model, variables.pop("params"), variables, x


def train(model, params, state, x, seed=0):
    """Logits in training, and the new state."""
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params, **state}, x, train=True, rngs=rngs, mutable=list(state))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_dtypes(name, dtype):
    model, shape = MODELS[name]
    model, x = model.clone(dtype=dtype), examples(shape)
    expected = (3, *(shape if len(shape) == 1 else ()), 10)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    params = variables.pop("params")
    assert list(variables) == (["batch_stats"] if name in ("cnn with batch norm", "resnet", "mobilenet") else [])
    outputs, state = jax.eval_shape(partial(train, model), params, variables, x)
    assert outputs.shape == expected and outputs.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, dict(state)) == jax.tree.map(jnp.shape, variables)
    outputs = jax.eval_shape(model.apply, {"params": params, **variables}, x)
    assert outputs.shape == expected and outputs.dtype == jnp.float32
    if dtype == "bfloat16":
        assert "bf16" in str(jax.make_jaxpr(model.apply)({"params": params, **variables}, x))


SIZES = {
    "the MNIST network": (CNN(), (28, 28, 1), (9 * 32 + 32) + (288 * 64 + 64) + (3136 * 128 + 128) + 1290),
    "mlp": (MLP(), (8, 8, 1), (64 * 128 + 128) + (128 * 128 + 128) + 1290),
    "rnn": (SequenceRNN(32, "rnn", outputs=1), (10, 1), (1 + 32 + 1) * 32 + 33),
    "lstm": (SequenceRNN(256, "lstm", outputs=1), (128, 256), 4 * (256 + 256 + 1) * 256 + 257),
    "gru": (SequenceRNN(16, "gru", outputs=1), (10, 4), 3 * (4 + 16 + 1) * 16 + 16 + 17),
    "language": (LanguageRNN(65), (64,), 65 * 128 + 4 * (128 + 128 + 1) * 128 + 129 * 65),
    "transformer": (
        VisionTransformer(),
        (32, 32, 3),
        (48 + 1) * 128 + 64 * 128 + 4 * (4 * 128 + 129 * 384 + 129 * 128 + 129 * 512 + 513 * 128) + 2 * 128 + 1290,
    ),
    # He et al. 2015, table 6: 0.27 million.
    "resnet": (ResNet(depth=20), (32, 32, 3), 269_722),
    # Howard et al. 2017, table 8: 4.2 million.
    "mobilenet": (MobileNet(), (224, 224, 3), 4_231_976),
}


@pytest.mark.parametrize("model, shape, size", SIZES.values(), ids=SIZES)
def test_parameter_counts(model, shape, size):
    params = jax.eval_shape(model.init, jax.random.key(0), examples(shape))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_follows_its_key_and_only_in_training(name):
    model, params, state, x = setup(name)
    run = jit(lambda seed: train(model, params, state, x, seed)[0])
    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))
    without = model.clone(dropout=0.0)
    evaluate = [jit(m.apply)({"params": params, **state}, x) for m in (model, without)]  # no key is needed
    np.testing.assert_array_equal(*evaluate)


@pytest.mark.parametrize("name", MODELS)
def test_remat_changes_nothing_but_memory(name):
    _, params, state, x = setup(name)

    def run(remat):
        model = MODELS[name][0].clone(remat=remat)

        def loss(params):
            logits, new = train(model, params, state, x)
            return jnp.square(logits).sum(), new

        return jax.value_and_grad(loss, has_aux=True)

    found, expected = jit(run("full"))(params), jit(run("none"))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    assert "remat" in str(jax.make_jaxpr(run("full"))(params))


def nudged(tree, seed):
    """Each float32 number one unit in the last place up or down, by chance."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    toward = [
        jnp.where(jax.random.bernoulli(k, shape=a.shape), jnp.inf, -jnp.inf) for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, list(map(jnp.nextafter, leaves, toward)))


@pytest.mark.parametrize("name", MODELS)
def test_vmap_over_parameters_is_a_loop(name):
    """Up to rounding: to what the last place of the parameters decides, which the gradient's condition magnifies.

    MobileNet's last blocks see one pixel of three examples, and their norms divide by almost nothing: there this is
    a tenth of some gradients. Of the other models it is 5e-6 at most.
    """
    model, params, state, x = setup(name)

    def gradient(params, state):
        return jax.grad(lambda params: jnp.square(train(model, params, state, x)[0]).sum())(params)

    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf + 0.1]), (params, state))
    found = jit(jax.vmap(gradient))(*lanes)
    gradient, nudge = jit(gradient), jit(nudged)
    for i in range(2):
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], lanes)
        near = [gradient(*nudge(lane, seed)) for seed in range(4)]
        for (path, expected), value, *others in zip(
            jax.tree.leaves_with_path(gradient(*lane)), *map(jax.tree.leaves, (found, *near)), strict=True
        ):
            moved = max(np.abs(other - expected).max() for other in others)
            bound = 8 * moved + 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(value[i], expected, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


def test_a_language_model_does_not_look_ahead():
    model, params, _, tokens = setup("language")
    run = jit(partial(model.apply, {"params": params}))
    before, after = run(tokens), run(tokens.at[:, 3].add(1))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(axis=(0, 2)).all()  # and forgets nothing


MISTAKES = {
    "unknown cell 'lstn'": (SequenceRNN(cell="lstn"), (4, 2)),
    "patches of 5 x 5 do not tile": (VisionTransformer(patch=5), (32, 32, 3)),
    "5 heads do not divide": (VisionTransformer(heads=5), (32, 32, 3)),
    "depth 21 cannot be built": (ResNet(depth=21), (32, 32, 3)),
}


@pytest.mark.parametrize("message, model, shape", [(m, *case) for m, case in MISTAKES.items()], ids=MISTAKES)
def test_mistakes_are_named(message, model, shape):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, *shape)))


def test_patches_hold_their_pixels():
    x = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
    found = patches(jnp.array(x), 2)
    assert found.shape == (2, 6, 12)
    np.testing.assert_array_equal(found[1, 3], x[1, 2:4, 2:4].ravel())


def test_the_cnn_starts_uniform():
    """Every kernel between -1 / sqrt(n) and 1 / sqrt(n), with a third of 1 / n for its variance; biases 0."""
    params = jit(CNN().init)(jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            assert not leaf.any()
            continue
        fan_in = np.prod(leaf.shape[:-1])
        assert abs(leaf).max() <= fan_in**-0.5
        np.testing.assert_allclose(leaf.var(), 1 / (3 * fan_in), rtol=0.2)
