"""The decoder-only Transformer: every variant, its cache, and PyTorch's layers with the same weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplearn import optimizers, roles, sampling
from deeplearn.errors import UserError
from deeplearn.losses import cross_entropy
from deeplearn.models import gpt
from deeplearn.models.gpt import GPT, Architecture
from kernels import target

SMALL = Architecture(vocabulary=11, length=12, width=16, depth=3, heads=4)
VARIANTS = [
    {},
    {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "bias": False, "kv_heads": 2},
    {"positions": "alibi", "tied": False, "kv_heads": 1},
    {"heads": 2, "mlp_ratio": 8 / 3, "norm": "rms", "tied": False, "bias": False},
]


def draw(seed, batch=2, length=12):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, 11, jnp.int32)


def made(**fields):
    """The model, and its parameters, larger than it draws them, so that every part tells."""
    model = GPT(SMALL._replace(**fields))
    params = model.init(jax.random.key(0), draw(0))["params"]
    return model, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)


def test_the_parameters_are_drawn_as_gpt_2s():
    """From N(0, 0.02^2), and what adds to the residual stream so that its 2 depth sums have the variance of one."""
    params = GPT(SMALL._replace(width=64)).init(jax.random.key(0), draw(0))["params"]
    layers = params["layers"]
    for wanted, drawn in (
        (0.02, [params["token_embedding"], params["position_embedding"]]),
        (0.02, [layers[name]["kernel"] for name in ("qkv", "up")]),
        (0.02 / 6**0.5, [layers[name]["kernel"] for name in ("out", "down")]),
    ):
        np.testing.assert_allclose([x.std() for x in drawn], wanted, rtol=0.1)
    assert jnp.abs(layers["up"]["kernel"][0] - layers["up"]["kernel"][1]).max() > 0.01
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name in ("bias", "scale"):
            np.testing.assert_array_equal(x, float(name == "scale"))


@pytest.mark.parametrize("kind", ["learned", "rotary", "alibi"])
def test_where_tokens_stand_is_known(kind):
    """To one layer of attention, for which without positions they would be a set."""
    model, params = made(positions=kind, depth=1)
    tokens = draw(1).at[:, 2].set(3).at[:, 5].set(4)
    other = tokens.at[:, 2].set(4).at[:, 5].set(3)
    last = [model.apply({"params": params}, x)[:, -1] for x in (tokens, other)]
    assert (jnp.abs(last[0] - last[1]).max(axis=-1) > 1e-3).all()


def test_rotary_rms_swiglu_and_shared_keys_by_their_formulas():
    model, params = made(**VARIANTS[1])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rms = lambda x, scale: x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5) * scale  # noqa: E731
    angles = np.arange(12)[:, None] * 10_000.0 ** -(np.arange(2) / 2)

    def turned(x):
        z = (x[:, :2] + 1j * x[:, 2:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=-1)

    def attend(q, k, v):
        shares = np.exp(turned(q) @ turned(k).T / 2) * np.tri(12)
        return shares / shares.sum(axis=-1, keepdims=True) @ v

    def logits(tokens):
        x = p["token_embedding"][tokens]
        for i in range(3):
            layer = jax.tree.map(lambda x: x[i], p["layers"])  # noqa: B023
            y = rms(x, layer["attention_norm"]["scale"]) @ layer["qkv"]["kernel"]
            y = y.reshape(12, 2, 4, 4)  # two groups of two queries, a key and a value of 4 features
            heads = [attend(y[:, n, m], y[:, n, 2], y[:, n, 3]) for n in range(2) for m in range(2)]
            x = x + np.concatenate(heads, axis=-1) @ layer["out"]["kernel"]
            y = rms(x, layer["mlp_norm"]["scale"])
            gate = y @ layer["gate"]["kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"]["kernel"])) @ layer["down"]["kernel"]
        return rms(x, p["norm"]["scale"]) @ p["token_embedding"].T

    wanted = [logits(tokens) for tokens in np.asarray(draw(1))]
    np.testing.assert_allclose(model.apply({"params": params}, draw(1)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_a_token_knows_those_before_it_alone(fields):
    model, params = made(**fields)
    tokens = draw(1)
    logits = model.apply({"params": params}, tokens)
    assert logits.shape == (2, 12, 11) and logits.dtype == jnp.float32
    other = model.apply({"params": params}, tokens.at[:, 7].set((tokens[:, 7] + 1) % 11))
    np.testing.assert_array_equal(logits[:, :7], other[:, :7])
    assert (jnp.abs(logits - other)[:, 7:].max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize("parts", [(12,), (5, 7), (1,) * 12, (4, 1, 1, 6)], ids=str)
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_the_cache_gives_the_same_logits(fields, parts):
    model, params = made(**fields)
    tokens, cache, found = draw(1), gpt.empty(model.architecture, 2), []
    read = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache=cache))
    for start, count in zip(itertools.accumulate((0, *parts)), parts, strict=False):
        logits, cache = read(tokens[:, start : start + count], cache)
        found.append(logits)
    assert int(cache.filled) == 12
    wanted = model.apply({"params": params}, tokens)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("fields", [{}, {"rows_multiple": 16}, {"positions": "rotary"}], ids=str)
@pytest.mark.parametrize("token", [11, 15, 16, 255, -1, 2**31 - 1])
def test_a_token_that_does_not_exist_is_nan(fields, token):
    """From its place on, and in no other text: no other token's row stands for it, nor one of the padding."""
    model, params = made(**fields)
    tokens = draw(1).at[0, 7].set(token)
    logits = model.apply({"params": params}, tokens)[..., :11]
    assert jnp.isnan(logits[0, 7:]).all() and not jnp.isnan(logits[1]).any()


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize("filled, count", [(12, 1), (11, 2), (1, 12), (13, 1), (2**31 - 1, 1)])
def test_a_cache_without_room(positions, filled, count):
    """Refused where its filling is known; else the logits are NaN, and not those of another position."""
    model, params = made(positions=positions)
    cache = gpt.empty(model.architecture, 2)._replace(filled=jnp.int32(filled))
    read = lambda cache: model.apply({"params": params}, draw(1)[:, :count], cache=cache)[0]  # noqa: E731
    with pytest.raises(UserError, match=f"the cache has {filled} of 12 tokens: there is no room for {count} more"):
        read(cache)
    assert jnp.isnan(jax.jit(read)(cache)).all()
    assert not jnp.isnan(jax.jit(read)(cache._replace(filled=jnp.int32(12 - count)))).any()


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_alone(remat):
    def gradient(**fields):
        model, params = made(**fields)

        def loss(params):
            return jnp.square(
                model.apply({"params": params}, draw(1), True, rngs={"dropout": jax.random.key(2)})
            ).mean()

        return jax.grad(loss)(params), str(jax.make_jaxpr(jax.grad(loss))(params))

    (plain, before), (again, after) = gradient(dropout=0.5), gradient(dropout=0.5, remat=remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)
    assert after.count("dot_general") > before.count("dot_general")


def test_dots_keeps_products_that_full_computes_anew():
    def products(remat):
        model, params = made(remat=remat)
        gradient = jax.grad(lambda params: model.apply({"params": params}, draw(1)).sum())
        return str(jax.make_jaxpr(gradient)(params)).count("dot_general")

    assert products("none") < products("dots") < products("full")


def test_dropout_is_of_training_and_of_the_key():
    model, params = made(dropout=0.3)
    run = lambda key, train=True: model.apply({"params": params}, draw(1), train, rngs={"dropout": key})  # noqa: E731
    one, two = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(run(one), run(one))
    assert jnp.abs(run(one) - run(two)).max() > 0.1
    np.testing.assert_array_equal(run(one, train=False), made()[0].apply({"params": params}, draw(1)))


def test_not_all_layers_drop_the_same():
    """Of ones that each of three adds to nothing, some are dropped by one or two of them."""
    model = GPT(SMALL._replace(vocabulary=16, dropout=0.5, norm="rms", positions="rotary", tied=False))
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), draw(0))["params"])
    params["layers"]["down"]["bias"] += 1
    params["norm"]["scale"] += 1
    params["head"]["kernel"] += jnp.eye(16)
    logits = model.apply({"params": params}, draw(1), True, rngs={"dropout": jax.random.key(1)})
    assert len(np.unique(np.asarray(logits[0, 0]).round(3))) > 2


def test_bfloat16_computes_near_float32():
    model, params = made()
    short = GPT(SMALL._replace(dtype=jnp.bfloat16))
    wanted, found = (m.apply({"params": params}, draw(1)) for m in (model, short))
    assert found.dtype == jnp.float32
    assert 1e-5 < jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted) < 0.03


@pytest.mark.parametrize("tied", [True, False])
def test_rows_beyond_the_vocabulary_change_nothing(tied):
    """Loss, gradients and what is drawn are those of the same weights without such rows, which have no gradient."""
    (model, params), (padded, more) = made(tied=tied), made(tied=tied, rows_multiple=8)
    here = lambda like: tuple(slice(n) for n in like.shape)  # noqa: E731
    more = jax.tree.map(lambda x, wide: wide.at[here(x)].set(x), params, more)
    assert jax.tree.map(jnp.shape, more) != jax.tree.map(jnp.shape, params)

    def loss(model, params):
        return cross_entropy(model.apply({"params": params}, draw(1)), draw(2)).mean()

    wanted, gradient = jax.value_and_grad(loss, argnums=1)(model, params)
    found, wider = jax.value_and_grad(loss, argnums=1)(padded, more)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    gradient = jax.tree.map(lambda x, wide: jnp.zeros_like(wide).at[here(x)].set(x), gradient, wider)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), wider, gradient)

    def written(model, params, **asked):
        step = lambda params, tokens, cache: model.apply({"params": params}, tokens, cache=cache)  # noqa: E731
        prompt, empty = np.asarray(draw(3, batch=1, length=4)), gpt.empty(model.architecture, 1)
        return list(sampling.generate(step, params, empty, 12, prompt, 20, jax.random.key(0), **asked))

    for asked in ({"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 11}):
        np.testing.assert_array_equal(written(padded, more, **asked), written(model, params, **asked))


def test_every_parameter_has_names():
    """AXES says what each dimension is, of every variant."""
    import re

    for fields in VARIANTS:
        model = GPT(SMALL._replace(**fields))
        shapes = jax.eval_shape(model.init, jax.random.key(0), draw(0))["params"]
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found = [axes for pattern, axes in gpt.AXES if re.search(pattern, name)]
            if name.startswith("norm/"):
                continue  # one vector, the last
            assert found and len(found[0]) == leaf.ndim, name


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_weight_decay_is_of_matrices_and_tables(fields):
    """As nanoGPT's: of every parameter but biases and the norms' scales."""
    model = GPT(SMALL._replace(**fields))
    params = jax.eval_shape(model.init, jax.random.key(0), draw(0))["params"]
    for name, role in roles.find(lambda params, x: model.apply({"params": params}, x), params, draw(0)).items():
        assert role.decays == (name.rpartition("/")[2] not in ("bias", "scale")), name


def test_sophia_steps_where_attention_goes_by_tiles(monkeypatch):
    """At 512 tokens, where attention is not the formula; the estimate of the Hessian is that of the formula."""
    model = GPT(SMALL._replace(length=512, width=8, heads=2, depth=2))
    tokens = draw(1, 1, 513)
    params = model.init(jax.random.key(0), tokens[:, :-1])["params"]
    sophia = optimizers.make("sophia(update_interval=1)", learning_rate=0.01)

    def step(params):
        def loss(params):
            return cross_entropy(model.apply({"params": params}, tokens[:, :-1]), tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = sophia.update(grads, sophia.init(params), params, value=value, value_fn=loss)
        return value, loss(optax.apply_updates(params, updates)), optax.tree.get(state, "nu")

    with target.recorded() as used:
        before, after, ours = jax.jit(step)(params)
    monkeypatch.setattr(target, "wants_formulas", lambda: True)
    _, _, theirs = jax.jit(lambda params: step(params))(params)
    assert used == {("attention", "xla")} and after < before
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * jnp.abs(b).max())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"heads": 3}, "3 heads do not divide the width, 16"),
        ({"kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"kv_heads": 8}, "kv_heads 8 does not divide heads 4"),
        ({"heads": 0}, "heads is 0; it must be at least 1"),
        ({"kv_heads": -1}, "kv_heads is -1; it must be at least 1"),
        ({"width": -16}, "width is -16; it must be at least 1"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"positions": "learnt"}, "learned"),
        ({"norm": "batch"}, "norm"),
        ({"mlp": "relu"}, "mlp"),
        ({"remat": "some"}, "remat"),
        ({"heads": 16, "positions": "rotary"}, "must be even"),
        ({"length": 11}, "12 tokens are more than the model's length, 11"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        GPT(SMALL._replace(**fields)).init(jax.random.key(0), draw(0))


def test_against_pytorch():
    """Logits and gradients of its Transformer layers, norms first, masked."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    model, params = made()
    options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    gelu = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
    layers = [torch.nn.TransformerEncoderLayer(16, 4, 64, activation=gelu, **options) for _ in range(3)]
    tensor = lambda x: torch.tensor(np.asarray(x), requires_grad=True)  # noqa: E731
    embedding, positions = tensor(params["token_embedding"]), tensor(params["position_embedding"])
    scale, bias = (tensor(params["norm"][name]) for name in ("scale", "bias"))
    names = {
        "qkv": ("self_attn.in_proj_weight", "self_attn.in_proj_bias"),
        "out": ("self_attn.out_proj.weight", "self_attn.out_proj.bias"),
        "up": ("linear1.weight", "linear1.bias"),
        "down": ("linear2.weight", "linear2.bias"),
        "attention_norm": ("norm1.weight", "norm1.bias"),
        "mlp_norm": ("norm2.weight", "norm2.bias"),
    }
    by_kind = lambda x: x.reshape(4, 3, 4, -1).transpose(0, 1).reshape(x.shape)  # noqa: E731
    by_head = lambda x: x.reshape(3, 4, 4, -1).transpose(0, 1).reshape(x.shape)  # noqa: E731
    for i, layer in enumerate(layers):
        own = {}
        for name, (weight, offset) in names.items():
            first, second = params["layers"][name].get("kernel", params["layers"][name].get("scale")), None
            second = params["layers"][name]["bias"]
            own |= {weight: torch.tensor(np.asarray(first[i].T)), offset: torch.tensor(np.asarray(second[i]))}
            if name == "qkv":  # PyTorch has all queries, then all keys, then all values
                own |= {place: by_kind(own[place]) for place in (weight, offset)}
        layer.load_state_dict(own)
    tokens = draw(1)
    x = F.embedding(torch.tensor(np.asarray(tokens)).long(), embedding) + positions[None]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(12)
    for layer in layers:
        x = layer(x, src_mask=mask, is_causal=True)
    logits = F.layer_norm(x, (16,), scale, bias, 1e-5) @ embedding.T
    logits.square().mean().backward()

    loss = lambda params: jnp.square(model.apply({"params": params}, tokens)).mean()  # noqa: E731
    np.testing.assert_allclose(model.apply({"params": params}, tokens), logits.detach(), rtol=1e-4, atol=1e-4)
    found = jax.grad(loss)(params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)  # noqa: E731
    close(found["token_embedding"], embedding.grad)
    close(found["position_embedding"], positions.grad)
    close(found["norm"]["scale"], scale.grad)
    for i, layer in enumerate(layers):
        grads = {name: by_head(p.grad) if "in_proj" in name else p.grad for name, p in layer.named_parameters()}
        for name, (weight, offset) in names.items():
            ours = found["layers"][name]
            close(ours.get("kernel", ours.get("scale"))[i].T, grads[weight])
            close(ours["bias"][i], grads[offset])
