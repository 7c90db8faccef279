"""The rules on real models, the state that follows its parameters, and each mesh's losses and traffic."""

import re
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from optax import contrib

from deeplearn.errors import UserError
from deeplearn.parallel import mesh, placement

# 48 is no dimension of the model, so that activations show among the collectives.
BATCH, FEATURES, CLASSES = 48, 64, 10
TX = optax.adam(1e-3)


class TrainState(NamedTuple):
    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    rng: Any


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(256, name="hidden")(x))
        x = nn.LayerNorm(name="norm")(x)
        x = nn.relu(nn.Dense(96, name="narrow")(x))
        return nn.Dense(CLASSES, name="out")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(512, 64, name="embed")(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(nn.LayerNorm(name="norm")(x))
        x = x + nn.Dense(64, name="down")(nn.gelu(nn.Dense(255, name="up")(x)))
        return nn.Dense(12, name="out")(x)


def abstract(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def specs(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec for path, leaf in leaves}


TOKENS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("data:8", {}),
        (
            "fsdp:8",
            {
                "embed/embedding": P("fsdp"),
                "attention/query/kernel": P("fsdp"),
                "attention/key/kernel": P("fsdp"),
                "attention/value/kernel": P("fsdp"),
                "attention/out/kernel": P(None, None, "fsdp"),
                "up/kernel": P("fsdp"),  # 255 outputs do not divide
                "down/kernel": P(None, "fsdp"),
            },
        ),
        (
            "data:4,tensor:2",
            {
                "attention/query/kernel": P(None, None, "tensor"),
                "attention/key/kernel": P(None, None, "tensor"),
                "attention/value/kernel": P(None, None, "tensor"),
                "attention/out/kernel": P(None, None, "tensor"),
                "down/kernel": P(None, "tensor"),
            },
        ),
        (
            "data:2,fsdp:2,tensor:2",
            {
                "embed/embedding": P("fsdp"),
                "attention/query/kernel": P("fsdp", None, "tensor"),
                "attention/key/kernel": P("fsdp", None, "tensor"),
                "attention/value/kernel": P("fsdp", None, "tensor"),
                "attention/out/kernel": P(None, "fsdp", "tensor"),
                "up/kernel": P("fsdp"),
                "down/kernel": P(None, "tensor"),
            },
        ),
    ],
)
def test_the_usual_rules(text, expected):
    got = specs(placement.place(abstract(Block(), TOKENS), mesh.parse(text)))
    divided = {path: spec for path, spec in got.items() if spec != P()}
    assert divided == expected  # biases, norms and the small out: whole


@pytest.mark.parametrize(
    "rules, shape, expected",
    [
        ([("w$", ("fsdp", None)), ("w$", (None, "fsdp"))], (8, 8), P("fsdp")),  # the first match wins
        ([("^w", (None, "fsdp")), ("", ("fsdp", None))], (8, 8), P("fsdp")),  # ^ starts the whole path
        ([("layer/w$", ("tensor", "fsdp"))], (8, 8), P("tensor", "fsdp")),
        ([("layer/w$", ("tensor", "fsdp"))], (7, 8), P(None, "fsdp")),  # 7 rows do not divide by 2
        ([("layer/w$", ("data", None))], (8, 8), P()),  # an axis of size 1 divides nothing
        ([("bias$", ("fsdp",))], (8, 8), P()),  # no rule matches
        ([("", placement.fsdp)], (8, 8), P()),  # small
        ([("", partial(placement.fsdp, min_size=0))], (8, 8), P("fsdp")),
        ([("", partial(placement.fsdp, min_size=0))], (8, 12), P(None, "fsdp")),
        ([("", partial(placement.fsdp, min_size=0))], (7, 9), P()),
        ([("", partial(placement.fsdp, min_size=0))], (), P()),
        ([("", partial(placement.columns, min_size=0))], (4, 8), P("fsdp", "tensor")),
        ([("", partial(placement.columns, min_size=0))], (4, 7), P("fsdp")),
        ([("", partial(placement.columns, min_size=0))], (3, 8), P(None, "tensor")),
    ],
)
def test_rules(rules, shape, expected):
    tree = {"layer": {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}}
    assert placement.place(tree, mesh.parse("fsdp:4,tensor:2"), rules)["layer"]["w"].spec == expected


@pytest.mark.parametrize(
    "axes, message",
    [
        (("fsdp",), "the placement rule for layer/w has 1 axes, the shape is (8, 8): give one a dimension"),
        (("fsd", None), "unknown mesh axis 'fsd'; did you mean fsdp?"),
        (("fsdp", "embed"), "placement gives fsdp to 2 dimensions of layer/w: give it to one"),
    ],
)
def test_a_wrong_rule_names_its_remedy(axes, message):
    tree = {"layer": {"w": jnp.zeros((8, 8))}}
    with pytest.raises(UserError, match=re.escape(message)):
        placement.place(tree, mesh.parse("fsdp:8"), [("w$", axes)])


@pytest.mark.parametrize(
    "text, rules, changed",
    [
        ("", (), {}),
        ("embed=data", (), {"embed": "data"}),
        ("vocabulary=-, w$=tensor+-", (("w$", ("tensor", None)),), {"vocabulary": None}),
        ("a=b$=fsdp", (("a=b$", ("fsdp",)),), {}),
    ],
)
def test_rules_of_a_text(text, rules, changed):
    assert placement.parse(text) == (rules, {**placement.LOGICAL, **changed})


@pytest.mark.parametrize(
    "text, message",
    [
        ("embed", "placement 'embed' is not of the form NAME=AXIS"),
        ("=fsdp", "placement '=fsdp' is not of the form"),
        ("embed=data+fsdp", "a dimension has one axis"),
        ("(=fsdp", "placement '(' is no regular expression"),
    ],
)
def test_a_text_that_is_none(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        placement.parse(text)


def initial(tx, rng):
    params = MLP().init(rng, jnp.zeros((1, FEATURES)))["params"]
    model_state = {"average": params, "mean": jnp.zeros(256)}
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), rng)


@pytest.mark.parametrize(
    "tx, prefixes",
    [
        (optax.adam(1e-3), ["0/mu", "0/nu"]),
        (optax.inject_hyperparams(optax.adam)(1e-3), ["inner_state/0/mu", "inner_state/0/nu"]),
        (optax.adafactor(1e-3, min_dim_size_to_factor=128), ["0/v"]),  # 64 x 256 and 256 x 96: not factored
        (optax.adafactor(1e-3, min_dim_size_to_factor=64), []),  # both factored
        (contrib.muon(1e-3), ["inner_states/muon/inner_state/0/mu"]),
        (contrib.schedule_free_adamw(1e-3), ["z", "base_optimizer_state/0/nu"]),
        (optax.lbfgs(), ["0/params", "0/updates", "2/grad"]),  # and the stacked history whole
    ],
)
def test_the_state_follows_its_parameters(tx, prefixes):
    m = mesh.parse("data:2,fsdp:4")
    init = partial(initial, tx)
    state = jax.eval_shape(init, jax.random.key(0))
    got = {path: spec for path, spec in specs(placement.place_state(state, m)).items() if spec != P()}
    kernels = {"hidden/kernel": P(None, "fsdp"), "narrow/kernel": P("fsdp")}
    followers = ["params", "model_state/average", *(f"opt_state/{prefix}" for prefix in prefixes)]
    assert got == {f"{prefix}/{path}": spec for prefix in followers for path, spec in kernels.items()}


@pytest.mark.parametrize("size, divided", [(placement.MIN_SIZE - 8, False), (placement.MIN_SIZE, True)])
def test_small_arrays_stay_whole(size, divided):
    """With fsdp, with tensor, and with ZeRO, up to the last element."""
    params = {"kernel": jax.ShapeDtypeStruct((size // 8, 8), jnp.float32)}
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {}, {"mu": params}, ())
    zero = placement.place_state(state, mesh.parse("data:8"), zero=True)
    assert (zero.opt_state["mu"]["kernel"].spec != P()) is divided and zero.params["kernel"].spec == P()
    for text in ("fsdp:8", "tensor:8"):
        assert (placement.place(params, mesh.parse(text))["kernel"].spec != P()) is divided


def test_zero_divides_the_optimizers_state_alone():
    """Not the parameters, nor an average of them."""
    state = jax.eval_shape(partial(initial, TX), jax.random.key(0))
    placed = specs(placement.place_state(state, mesh.parse("data:8"), zero=True))
    kernels = {"hidden/kernel": P(None, "data"), "narrow/kernel": P("data")}
    wanted = {f"opt_state/0/{moment}/{path}": spec for moment in ("mu", "nu") for path, spec in kernels.items()}
    assert {path: spec for path, spec in placed.items() if spec != P()} == wanted


def test_the_state_of_a_parameter_whose_name_another_ends_with():
    params = {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
    params["layer"] = {"w": jax.ShapeDtypeStruct((128, 64), jnp.float32)}
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {}, {"mu": params}, ())
    placed = specs(placement.place_state(state, mesh.parse("fsdp:8")))
    assert placed["opt_state/mu/w"] == P(None, "fsdp") and placed["opt_state/mu/layer/w"] == P("fsdp")


def test_logical_names_are_those_of_the_state_too():
    params = {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {}, {"mu": params}, ())
    logical = {**placement.LOGICAL, "embed": "data"}
    placed = specs(placement.place_state(state, mesh.parse("data:8"), [("w$", ("embed", None))], logical))
    assert placed["params/w"] == placed["opt_state/mu/w"] == P("data")


MESHES = ["data:8", "fsdp:8", "data:4,tensor:2", "data:2,fsdp:2,tensor:2"]


def train_step(state, batch, m, shardings):
    batch = mesh.constrain_batch(batch, m)

    def loss(params):
        logits = MLP().apply({"params": placement.gather(params, shardings.params)}, batch["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer step
        updates, opt_state = TX.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), value


@cache
def on_mesh(text):
    """A function that makes the first state, placed; a batch; and the compiled step."""
    m = mesh.parse(text)
    init = partial(initial, TX)
    shardings = placement.place_state(jax.eval_shape(init, jax.random.key(0)), m)
    init = jax.jit(init, out_shardings=shardings)
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(BATCH, FEATURES)).astype(np.float32),
        "targets": rng.integers(CLASSES, size=BATCH).astype(np.int32),
    }
    batch = jax.device_put(batch, mesh.replicated(m))
    step = jax.jit(partial(train_step, m=m, shardings=shardings), donate_argnums=0)
    state = init(jax.random.key(0))
    return lambda: init(jax.random.key(0)), batch, step.lower(state, batch).compile()


def losses(text, steps=5):
    init, batch, step = on_mesh(text)
    state, values = init(), []
    for _ in range(steps):
        state, value = step(state, batch)
        values.append(float(value))
    return values


@pytest.mark.parametrize("text", MESHES)
def test_every_mesh_gives_the_losses_of_one_device(text):
    values = losses(text)
    # The same sums in another order: each device adds its own rows first, so a float32 sum differs by a few
    # roundings of 6e-8. Only the first steps: Adam makes a whole step of a gradient no larger than rounding.
    np.testing.assert_allclose(values, losses("data:1"), rtol=2e-6)
    assert values[-1] < values[0]


@pytest.mark.parametrize("text, shape", [*zip(MESHES, [(64, 256), (64, 32), (64, 128), (32, 128)], strict=True)])
def test_a_step_keeps_the_state_divided(text, shape):
    init, batch, step = on_mesh(text)
    before = init()
    placed = jax.tree.map(lambda x: x.sharding, before)
    after, _ = step(before, batch)
    for tree in (after.params, after.opt_state[0].mu, after.opt_state[0].nu):
        shards = tree["hidden"]["kernel"].addressable_shards
        assert {s.data.shape for s in shards} == {shape} and len(shards) == 8
    assert jax.tree.map(lambda x: x.sharding, after) == placed
    assert all(x.is_deleted() for x in jax.tree.leaves((before.params, before.opt_state)))  # donated


@pytest.mark.parametrize("text, shape", [("fsdp:8", (64, 256)), ("fsdp:4,tensor:2", (64, 128))])
def test_gather_brings_fsdp_together_and_not_tensor(text, shape):
    params = {"kernel": jnp.arange(64 * 256.0).reshape(64, 256)}
    shardings = placement.place(params, mesh.parse(text))
    whole = jax.jit(partial(placement.gather, shardings=shardings))(jax.device_put(params, shardings))
    assert whole["kernel"].addressable_shards[0].data.shape == shape
    np.testing.assert_array_equal(whole["kernel"], params["kernel"])


def collectives(text):
    """(operation, shape) of every array that the compiled step exchanges."""
    hlo = on_mesh(text)[2].as_text()
    operations = re.findall(r" = (.*?) (all-[\w-]+|reduce-scatter|collective-permute)\(", hlo)
    return {(name, shape) for shapes, name in operations for shape in re.findall(r"\[([\d,]*)\]", shapes)}


def test_data_parallelism_only_sums_gradients():
    assert {name for name, _ in collectives("data:8")} == {"all-reduce"}


def test_fsdp_gathers_parameters_and_never_activations():
    found = collectives("fsdp:8")
    gathered = {tuple(sorted(map(int, shape.split(",")))) for name, shape in found if name == "all-gather"}
    assert gathered == {(64, 256), (96, 256)}
    assert not any(re.match(rf"({BATCH}|{BATCH // 8}),", shape) for _, shape in found)


def test_table():
    m = mesh.parse("fsdp:4,tensor:2")
    tree = {"b": jnp.zeros(256), "w": jnp.zeros((64, 256)), "half": jnp.zeros((96, 64), jnp.bfloat16)}
    text = placement.table(tree, placement.place(tree, m, [("^w", ("tensor", "fsdp")), ("", placement.fsdp)]))
    assert text == "\n".join(
        [
            "path   shape      axes         bytes a device",
            "b      (256,)     whole                 1,024",
            "half   (96, 64)   fsdp -                3,072",
            "w      (64, 256)  tensor fsdp           8,192",
            "total                                  12,288  of 78,848",
        ]
    )


def test_the_table_has_roles_beside_the_placement():
    tree = {"b": jnp.zeros(256), "w": jnp.zeros((64, 256))}
    shardings = placement.place(tree, mesh.parse("data:1"))
    assert placement.table(tree, shardings, {"w": "kernel 0 -> 1"}) == "\n".join(
        [
            "path   shape      axes   bytes a device  role",
            "b      (256,)     whole           1,024",
            "w      (64, 256)  whole          65,536  kernel 0 -> 1",
            "total                            66,560  of 66,560",
        ]
    )


@pytest.mark.parametrize("text", ["data:1", *MESHES])
def test_the_table_counts_the_bytes_that_a_device_holds(text):
    state = on_mesh(text)[0]()
    shardings = jax.tree.map(lambda x: x.sharding, state)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state._replace(rng=())))
    key = state.rng.dtype.itemsize
    assert f"{held + key:,}" in placement.table(state, shardings).splitlines()[-1].split()
