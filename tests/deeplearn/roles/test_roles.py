"""The role of each parameter, in our models and in Flax's modules, and of whatever can happen to a parameter."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deeplearn import roles
from deeplearn.layers.convolution import Conv, ConvTranspose
from deeplearn.layers.recurrent import Recurrent
from deeplearn.models.cnn import CNN
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.models.mobilenet import MobileNet
from deeplearn.models.rnn import LanguageRNN
from deeplearn.models.transformer import VisionTransformer

SMALL = {"vocabulary": 10, "length": 6, "width": 8, "depth": 3, "heads": 2}
TOKENS, SEQUENCE, IMAGES = jnp.zeros((2, 6), jnp.int32), jnp.zeros((2, 4, 6)), jnp.zeros((2, 8, 8, 3))


class Frozen(nn.Module):
    """Layers in one array by Flax's own loop, recomputed in the backward pass."""

    @nn.compact
    def __call__(self, x):
        layer = nn.scan(nn.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
        return layer(name="steps")(x, None)[0]


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(x.shape[-1])(nn.LayerNorm()(x)), None


# Of each module: an input, and the roles of some of its parameters.
MODULES = {
    "a dense layer": (nn.Dense(3), SEQUENCE, {"kernel": "kernel 0 -> 1", "bias": "vector"}),
    "an embedding": (nn.Embed(10, 8), TOKENS, {"embedding": "embedding 0 -> 1"}),
    "a convolution of Flax": (nn.Conv(5, (3,)), SEQUENCE, {"kernel": "kernel 0,1 -> 2", "bias": "vector"}),
    "a transposed convolution of Flax": (nn.ConvTranspose(5, (3,)), SEQUENCE, {"kernel": "kernel 0,1 -> 2"}),
    "one with kernels the other way round": (
        nn.ConvTranspose(5, (3,), transpose_kernel=True),
        SEQUENCE,
        {"kernel": "kernel 0,2 -> 1"},
    ),
    "a convolution": (Conv(5, (3, 3)), IMAGES, {"kernel": "kernel 0,1,2 -> 3", "bias": "vector"}),
    "a transposed convolution": (ConvTranspose(5, (3, 3), strides=2), IMAGES, {"kernel": "kernel 0,1,2 -> 3"}),
    "a depthwise one": (Conv(3, (3, 3), groups=3), IMAGES, {"kernel": "kernel 0,1,2 -> 3"}),
    "a network with batch norm": (
        CNN((4,), hidden=8, batch_norm=True),
        IMAGES,
        {"block_0/Conv_0/kernel": "kernel 0,1,2 -> 3", "block_0/BatchNorm_0/scale": "vector", "hidden/bias": "vector"},
    ),
    "a MobileNet": (MobileNet(width=0.0625), IMAGES, {"block_0/Conv_0/kernel": "kernel 0,1,2 -> 3"}),
    "a normalization": (nn.LayerNorm(), SEQUENCE, {"scale": "vector", "bias": "vector"}),
    "one over several axes": (
        nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)),
        SEQUENCE,
        {"scale": "vector"},
    ),
    "heads": (
        nn.MultiHeadDotProductAttention(2),
        SEQUENCE,
        {
            "query/kernel": "kernel 0 -> 1,2",
            "query/bias": "vector",
            "out/kernel": "kernel 0,1 -> 2",
            "out/bias": "vector",
        },
    ),
    "heads without biases": (
        nn.MultiHeadDotProductAttention(2, use_bias=False),
        SEQUENCE,
        {"query/kernel": "kernel 0 -> 1,2", "out/kernel": "kernel 0,1 -> 2"},
    ),
    "a normalized kernel": (
        nn.WeightNorm(nn.Dense(3)),
        SEQUENCE,
        {"layer_instance/kernel": "kernel 0 -> 1", "layer_instance/kernel/scale": "vector"},
    ),
    "an LSTM of Flax": (
        nn.RNN(nn.OptimizedLSTMCell(5)),
        SEQUENCE,
        {"cell/ii/kernel": "kernel 0 -> 1", "cell/hi/kernel": "kernel 0 -> 1", "cell/hi/bias": "vector"},
    ),
    **{
        f"our {cell}": (
            Recurrent(5, cell=cell),
            SEQUENCE,
            {"input_kernel": "kernel 0 -> 1", "recurrent_kernel": "kernel 0 -> 1", "bias": "vector"},
        )
        for cell in ("rnn", "lstm", "gru")
    },
    "a language model": (LanguageRNN(10, 8), TOKENS, {"embedding/embedding": "embedding 0 -> 1"}),
    "a vision Transformer": (
        VisionTransformer(4, width=16, depth=1, heads=2),
        IMAGES,
        {"positions": "embedding 0 -> 1", "embedding/kernel": "kernel 0 -> 1", "norm/scale": "vector"},
    ),
    "a GPT": (
        GPT(Architecture(**SMALL)),
        TOKENS,
        {
            "token_embedding": "embedding 0 -> 1",
            "position_embedding": "embedding 0 -> 1",
            "layers/qkv/kernel": "kernel 1 -> 2, stack 0",
            "layers/qkv/bias": "vector, stack 0",
            "layers/mlp_norm/scale": "vector, stack 0",
            "norm/scale": "vector",
        },
    ),
    "a kernel a place": (
        nn.ConvLocal(5, (3,)),
        SEQUENCE,
        {"kernel": "kernel 1 -> 2, stack 0", "bias": "vector, stack 0"},
    ),
    "an einsum": (nn.Einsum((6, 3), "btd,de->bte"), SEQUENCE, {"kernel": "kernel 0 -> 1", "bias": "vector"}),
    "a product over two axes": (nn.DenseGeneral((3, 2), axis=(-2, -1)), SEQUENCE, {"kernel": "kernel 0,1 -> 2,3"}),
    "a direction and a length": (
        nn.WeightNorm(nn.Dense(3)),
        SEQUENCE,
        {"layer_instance/kernel": "kernel 0 -> 1", "layer_instance/kernel/scale": "vector"},
    ),
    "groups": (nn.GroupNorm(2), SEQUENCE, {"scale": "vector", "bias": "vector"}),
    "one slope": (nn.PReLU(), SEQUENCE, {"negative_slope": "vector"}),
    "a GPT with another head, recomputed": (
        GPT(Architecture(**SMALL, tied=False, positions="rotary", mlp="swiglu", norm="rms", remat="full")),
        TOKENS,
        {"head/kernel": "kernel 0 -> 1", "layers/gate/kernel": "kernel 1 -> 2, stack 0"},
    ),
    "layers of one": (GPT(Architecture(**SMALL | {"depth": 1})), TOKENS, {"layers/up/bias": "vector, stack 0"}),
    "a loop of Flax": (
        Frozen(),
        SEQUENCE,
        {"steps/Dense_0/kernel": "kernel 1 -> 2, stack 0", "steps/LayerNorm_0/scale": "vector, stack 0"},
    ),
}


@pytest.mark.parametrize("module, x, expected", MODULES.values(), ids=MODULES)
def test_modules(module, x, expected):
    params = dict(jax.eval_shape(module.init, jax.random.key(0), x))
    state = {name: params.pop(name) for name in list(params) if name != "params"}

    def apply(params, state, x):
        return module.apply({"params": params, **state}, x, mutable=list(state))

    result = roles.find(apply, params["params"], state, x)
    assert {name: str(result[name]) for name in expected} == expected


W, X = jnp.zeros((3, 4)), jnp.zeros((2, 3))
EXPERTS, EACH = jnp.zeros((5, 3, 4)), jnp.zeros((5, 2, 3))

# What can happen to a parameter before its product: a function of it and of activations, and its role.
FUNCTIONS = {
    "transposed": (lambda w, x: x @ w.T, jnp.zeros((4, 3)), X, "kernel 1 -> 0"),
    "divided into heads": (lambda w, x: jnp.einsum("bd,dnh->bnh", x, w.reshape(3, 2, 2)), W, X, "kernel 0 -> 1"),
    "flattened": (
        lambda w, x: x.reshape(2, -1) @ w.reshape(12, -1),
        jnp.zeros((3, 4, 5)),
        jnp.zeros((2, 3, 4)),
        "kernel 0,1 -> 2",
    ),
    "a batch of kernels": (lambda w, x: jnp.einsum("ebd,edf->ebf", x, w), EXPERTS, EACH, "kernel 1 -> 2, stack 0"),
    "one after another": (lambda w, x: [x @ w[i] for i in range(5)], EXPERTS, X, "kernel 1 -> 2, stack 0"),
    "one by a loop's index": (
        lambda w, x: lax.fori_loop(0, 5, lambda i, y: y + x @ w[i], jnp.zeros((2, 4))),
        EXPERTS,
        X,
        "kernel 1 -> 2, stack 0",
    ),
    "in a loop as long as the data say": (
        lambda w, x: lax.while_loop(
            lambda c: c[0] < x[0, 0], lambda c: (c[0] + 1, c[1] + x @ w), (0.0, jnp.zeros((2, 4)))
        ),
        W,
        X,
        "kernel 0 -> 1",
    ),
    "scaled by its norm": (lambda w, x: x @ (w / jnp.linalg.norm(w)), W, X, "kernel 0 -> 1"),
    "scaled by a number of the data": (lambda w, x: x @ (w * x.sum()), W, X, "kernel 0 -> 1"),
    "in bfloat16": (lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), W, X, "kernel 0 -> 1"),
    "with a mask": (lambda w, x: x @ jnp.where(jnp.eye(3, 4) > 0, w, 0), W, X, "kernel 0 -> 1"),
    "joined with zeros": (lambda w, x: x @ jnp.concatenate([w, jnp.zeros((3, 1))], 1), W, X, "kernel 0 -> 1"),
    "in a branch": (lambda w, x: lax.cond(x.sum() > 0, lambda: x @ w, lambda: 2 * x @ w), W, X, "kernel 0 -> 1"),
    "in a function with a derivative by hand": (lambda w, x: by_hand(w, x), W, X, "kernel 0 -> 1"),
    "forward, then backward": (lambda w, x: jax.grad(lambda x: jnp.square(x @ w).sum())(x), W, X, "kernel 0 -> 1"),
    "rows by tokens": (lambda w, x: w[x], W, TOKENS, "embedding 0 -> 1"),
    "rows by tokens, and the logits": (lambda w, x: w[x] @ w.T, W, TOKENS, "embedding 0 -> 1"),
    "columns by tokens": (lambda w, x: w[:, x], W, TOKENS, "embedding 1 -> 0"),
    "tokens as one-hot vectors": (lambda w, x: jax.nn.one_hot(x, 3) @ w, W, TOKENS, "kernel 0 -> 1"),
    "positions": (lambda w, x: x + w[None], W, jnp.zeros((2, 3, 4)), "embedding 0 -> 1"),
    "positions with an axis of one": (lambda w, x: x + w, W[None], jnp.zeros((2, 3, 4)), "embedding 1 -> 2"),
    "a token of its own": (
        lambda w, x: jnp.concatenate([jnp.broadcast_to(w, (2, 1, 4)), x], 1),
        jnp.zeros((1, 1, 4)),
        jnp.zeros((2, 3, 4)),
        "vector",
    ),
    "a first state": (
        lambda w, x: lax.scan(lambda h, x: (jnp.tanh(h + x), h), jnp.broadcast_to(w, (2, 3)), x)[0],
        jnp.zeros(3),
        EACH,
        "vector",
    ),
    "a code book": (
        lambda w, x: w[jnp.argmin(jnp.square(x[:, None] - w.T[None]).sum(-1), axis=-1)],
        jnp.zeros((3, 3)),
        X,
        "embedding 0 -> 1",
    ),
    "of two inputs": (lambda w, x: jnp.einsum("bi,ijk,bj->bk", x, w, x), jnp.zeros((3, 3, 4)), X, "kernel 0,1 -> 2"),
    "one unit": (lambda w, x: x @ w, jnp.zeros(3), X, "kernel 0 -> "),
    "step after step": (
        lambda w, x: lax.while_loop(lambda h: h.sum() < 1, lambda h: h @ w, x),
        jnp.zeros((3, 3)),
        X,
        "kernel 0 -> 1",
    ),
    "of complex numbers": (
        lambda w, x: jnp.abs(x @ w),
        W.astype(jnp.complex64),
        X.astype(jnp.complex64),
        "kernel 0 -> 1",
    ),
    "a temperature": (lambda w, x: x * w, jnp.zeros(()), X, "vector"),
    "a bias by distance": (lambda w, x: x + w[jnp.array([[0, 1, 2]])], jnp.zeros(3), X, "vector, stack 0"),
    "slopes": (lambda w, x: jnp.where(x > 0, x, x * w[None]), jnp.zeros(3), X, "vector"),
    "nothing": (lambda w, x: x, W, X, "vector"),
}


@jax.custom_vjp
def by_hand(w, x):
    return x @ w


by_hand.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, dy: (kept[1].T @ dy, dy @ kept[0].T))


@pytest.mark.parametrize("function, w, x, expected", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function, w, x, expected):
    assert str(roles.find(lambda p, x: function(p["w"], x), {"w": w}, x)["w"]) == expected


def test_both_factors_of_a_product_are_kernels():
    """As in a low-rank adaptation."""
    params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((2, 4)), "w": W}
    result = roles.find(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, X)
    assert {name: str(role) for name, role in result.items()} == dict.fromkeys("abw", "kernel 0 -> 1")


def test_both_factors_of_stacked_products_are_kernels():
    params = {"a": jnp.zeros((5, 3, 2)), "b": jnp.zeros((5, 2, 4))}
    result = roles.find(lambda p, x: jnp.einsum("ebd,edf->ebf", x, p["a"] @ p["b"]), params, EACH)
    assert {name: str(role) for name, role in result.items()} == dict.fromkeys("ab", "kernel 1 -> 2, stack 0")


def test_a_bias_is_of_the_kernel_beside_it_alone():
    """Positions have the shape of the heads of another module's kernel."""
    params = {
        "model": {"heads": {"kernel": jnp.zeros((6, 2, 4)), "bias": jnp.zeros((2, 4))}, "positions": jnp.zeros((2, 4))}
    }

    def function(p, x):
        heads, positions = p["model"]["heads"], p["model"]["positions"]
        return jnp.einsum("bd,dnh->bnh", x, heads["kernel"]) + heads["bias"][None] + positions[None]

    result = roles.find(function, params, jnp.zeros((3, 6)))
    assert str(result["model/heads/bias"]) == "vector" and str(result["model/positions"]) == "embedding 0 -> 1"


def test_a_batch_of_numbers_is_data():
    """One example alone would be a number, which is no activation."""

    def init(key):
        return {"table": jnp.zeros((10, 4))}, {}

    def loss(params, model_state, batch, key):
        return jnp.square(params["table"][batch["token"]]).sum(), (model_state, {})

    of_params = roles.of_task(SimpleNamespace(init=init, loss=loss), {"token": jax.ShapeDtypeStruct((), np.int32)})
    assert str(of_params({"table": jnp.zeros((10, 4))})["table"]) == "embedding 0 -> 1"


def test_biases_of_experts():
    params = {"kernel": EXPERTS, "bias": jnp.zeros((5, 4))}
    result = roles.find(lambda p, x: jnp.einsum("ebd,edf->ebf", x, p["kernel"]) + p["bias"][:, None], params, EACH)
    assert str(result["bias"]) == "vector, stack 0"


def test_a_part_of_the_parameters_has_its_roles():
    params = {"a": {"kernel": W, "bias": jnp.zeros(4)}}
    table = roles.find(lambda p, x: x @ p["a"]["kernel"] + p["a"]["bias"][None], params, X)
    assert str(roles.lookup(table, {"a": {"bias": jnp.zeros(4)}})["a"]["bias"]) == "vector"
    assert str(roles.lookup(table, {"a/kernel": W})["a/kernel"]) == "kernel 0 -> 1"


@pytest.mark.parametrize(
    "role, expected",
    [
        (roles.Role("kernel", (1,), (2, 3), (0,)), "kernel 0 -> 1,2"),
        (roles.Role("kernel", (0, 2), (3,), (1,)), "kernel 0,1 -> 2"),
        (roles.Role("vector", (), (1,), (0,)), "vector"),
        (roles.Role("kernel", (0,), (1,)), "kernel 0 -> 1"),
    ],
)
def test_one_of_a_stack(role, expected):
    assert str(role.of_one()) == expected


def test_nothing_is_computed():
    def fails(params, x):
        jax.debug.callback(lambda: pytest.fail("it is computed"))
        return x @ params["w"]

    roles.find(fails, {"w": jax.ShapeDtypeStruct((3, 4), np.float32)}, jax.ShapeDtypeStruct((2, 3), np.float32))
