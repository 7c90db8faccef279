"""The recurrent layer against Flax's cells, PyTorch's layers and plain autodiff."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplearn.errors import UserError
from deeplearn.layers.recurrent import CELLS, Recurrent, recurrence

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
SHORT, LONG = (2, 5, 3, 4), (8, 40, 3, 64)  # (B, T, D, H): the loop unrolled, and rolled
CASES = [("rnn", SHORT), ("rnn", LONG), ("lstm", SHORT), ("lstm", LONG), ("gru", SHORT)]


def layer_and_input(cell, size, dtype=jnp.float32):
    batch, time, inputs, features = size
    layer, x = Recurrent(features, cell, dtype), jax.random.normal(jax.random.key(1), (batch, time, inputs))
    params = jit(layer.init)(jax.random.key(0), x)["params"]
    return layer, params | {"bias": jax.random.normal(jax.random.key(2), params["bias"].shape)}, x


def value_and_gradients(apply, params, x):
    target = jnp.sin(jnp.arange(jax.eval_shape(apply, params, x).size, dtype=jnp.float32))
    return jit(jax.value_and_grad(lambda params, x: apply(params, x).ravel() @ target, argnums=(0, 1)))(params, x)


def blocks(kernel, count):
    return jnp.split(kernel, count, axis=-1)


def flax_variables(cell, params):
    w, u, b = params["input_kernel"], params["recurrent_kernel"], params["bias"]
    if cell == "rnn":
        return {"i": {"kernel": w, "bias": b}, "h": {"kernel": u}}
    if cell == "lstm":
        pairs = zip("ifgo", blocks(w, 4), blocks(u, 4), blocks(b, 4), strict=True)
        return {f"{side}{gate}": value for gate, w, u, b in pairs for side, value in _pair(w, u, b)}
    names, (br, bz, bn, bh) = "rzn", blocks(b, 4)
    inputs = {f"i{n}": {"kernel": w, "bias": b} for n, w, b in zip(names, blocks(w, 3), (br, bz, bn), strict=True)}
    hidden = {f"h{n}": {"kernel": u} for n, u in zip(names, blocks(u, 3), strict=True)}
    return inputs | hidden | {"hn": hidden["hn"] | {"bias": bh}}


def _pair(w, u, b):
    return ("i", {"kernel": w}), ("h", {"kernel": u, "bias": b})


@pytest.mark.parametrize("cell, size", CASES)
def test_it_is_flaxs_cell(cell, size):
    layer, params, x = layer_and_input(cell, size)
    cells = {"rnn": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}
    flax = nn.RNN(cells[cell](size[-1]))

    def peer(params, x):
        return flax.apply({"params": {"cell": flax_variables(cell, params)}}, x)

    found = value_and_gradients(lambda params, x: layer.apply({"params": params}, x), params, x)
    expected = value_and_gradients(peer, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_pytorchs_layer(cell, size=LONG):
    torch = pytest.importorskip("torch")
    layer, params, x = layer_and_input(cell, size)
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    peer = kind(size[2], size[3], batch_first=True)
    bias = params["bias"]
    extra = jnp.zeros_like(bias)
    if cell == "gru":  # r, z and n of the input; only n of the recurrent part
        extra = jnp.concatenate([jnp.zeros(2 * size[3]), bias[3 * size[3] :]])
        bias = bias[: 3 * size[3]]
    with torch.no_grad():
        values = (params["input_kernel"].T, params["recurrent_kernel"].T, bias, extra)
        for parameter, value in zip(peer.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(np.array(value)))
    hidden, _ = peer(torch.tensor(np.array(x)))
    hidden.square().sum().backward()

    def loss(params):
        found = layer.apply({"params": params}, x)
        return jnp.square(found).sum(), found

    gradients, found = jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(found, hidden.detach(), atol=1e-5)
    np.testing.assert_allclose(gradients["input_kernel"].T, peer.weight_ih_l0.grad, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(gradients["recurrent_kernel"].T, peer.weight_hh_l0.grad, rtol=1e-3, atol=1e-3)


def by_autodiff(update, x, state, kernel, bias):
    def step(state, x):
        state = update(jnp.concatenate([x, state[0]], axis=-1) @ kernel + bias[None], state)
        return state, state[0]

    return jax.lax.scan(step, state, x)


@pytest.mark.parametrize("cell", CELLS)
def test_first_and_second_derivatives_are_autodiffs(cell):
    with jax.enable_x64(True):
        features, update = 3, CELLS[cell].update
        random = np.random.default_rng(0)
        x, kernel = random.normal(size=(4, 2, 2)), random.normal(size=(5, len(CELLS[cell].bias) * features))
        state = tuple(random.normal(size=(2, features)) for _ in range(CELLS[cell].states))
        arguments = (x, state, kernel, random.normal(size=kernel.shape[1]))

        def derivatives(function):
            def first(arguments):
                return jax.grad(lambda a: sum(jnp.sin(o).sum() for o in jax.tree.leaves(function(update, *a))))(
                    arguments
                )

            def second(arguments):
                return jax.grad(lambda a: sum(jnp.cos(g).sum() for g in jax.tree.leaves(first(a))))(arguments)

            return jit(lambda arguments: (first(arguments), second(arguments)))(arguments)

        found, expected = derivatives(recurrence), derivatives(by_autodiff)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_goes_on_from_its_state(cell):
    _, params, _ = layer_and_input(cell, SHORT)
    count, update = len(CELLS[cell].bias), CELLS[cell].update
    x = jax.random.normal(jax.random.key(0), (6, 2, 3))  # (T, B, D)
    kernel = jax.random.normal(jax.random.key(1), (3 + 4, count * 4))
    zeros = (jnp.zeros((2, 4)),) * CELLS[cell].states
    run = jit(lambda x, state: recurrence(update, x, state, kernel, params["bias"]))
    last, hidden = run(x, zeros)
    middle, first = run(x[:2], zeros)
    end, second = run(x[2:], middle)
    np.testing.assert_allclose(hidden, jnp.concatenate([first, second]), atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last, end)


def test_a_sharded_batch_gives_the_same_gradient():
    layer, params, x = layer_and_input("lstm", LONG)
    gradient = jit(jax.grad(lambda params, x: jnp.square(layer.apply({"params": params}, x)).sum()))
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))
    found = gradient(params, jax.device_put(x, sharding))
    expected = gradient(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16(cell):
    layer, params, x = layer_and_input(cell, SHORT, jnp.bfloat16)
    found = jit(layer.apply)({"params": params}, x)
    assert found.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact = jit(Recurrent(SHORT[-1], cell).apply)({"params": params}, x)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.05)


def test_initial_values():
    _, _, x = layer_and_input("lstm", SHORT)
    params = jit(Recurrent(4, "lstm").init)(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0, 1, 0, 0], 4))
    matrices = blocks(params["recurrent_kernel"], 4)
    for block in matrices:
        np.testing.assert_allclose(block @ block.T, np.eye(4), atol=1e-5)
    assert len(np.unique(np.asarray(matrices)[:, 0, 0])) == 4  # each gate has its own


def test_an_unknown_cell():
    with pytest.raises(UserError, match="unknown cell 'lstn'; did you mean lstm"):
        Recurrent(4, "lstn").init(jax.random.key(0), jnp.ones((1, 2, 3)))
