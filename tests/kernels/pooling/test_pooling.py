import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import pooling
from kernels.convolution.windows import geometry, pair
from kernels.pooling import backends

CASES = [
    # shape, window, strides, padding
    ((2, 8, 8, 3), 2, None, "VALID"),
    ((2, 9, 7, 3), 2, None, "VALID"),
    ((2, 9, 7, 3), 3, 2, "VALID"),
    ((2, 9, 8, 3), 3, 2, "SAME"),
    ((2, 9, 8, 3), (3, 2), (1, 2), 1),
    ((1, 6, 6, 2), 3, 1, ((0, 1), (1, 0))),
    ((1, 5, 5, 1), 5, None, "VALID"),
    ((1, 9, 8, 2), 2, 3, "VALID"),
    ((1, 8, 7, 2), (6, 7), 1, ((5, 2), (3, 6))),
    ((1, 13, 13, 1), 12, 1, "VALID"),
    ((2, 20, 21, 2), (20, 21), None, "VALID"),
    ((2, 20, 9, 2), (14, 5), None, ((8, 7), (0, 4))),
    ((2, 20, 9, 2), (4, 6), (5, 14), ((3, 0), (2, 5))),
]
KINDS = {"max_pool": np.max, "average_pool": np.mean, "sum_pool": np.sum}


def formula(kind, x, window, strides, padding):
    """Window by window, in float64."""
    window = pair("window", window)
    strides = window if strides is None else pair("strides", strides)
    pads = geometry(x.shape[1:3], window, strides, padding).padding
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)), constant_values=-np.inf if kind == "max_pool" else 0)
    view = np.lib.stride_tricks.sliding_window_view(x, window, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return KINDS[kind](view, axis=(-2, -1))


@pytest.mark.parametrize("shape, window, strides, padding", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", [None, "reference", "xla"])
def test_values(kind, implementation, shape, window, strides, padding, key):
    x = jax.random.normal(key, shape)
    y = jax.jit(lambda x: getattr(pooling, kind)(x, window, strides, padding, implementation))(x)
    np.testing.assert_allclose(y, formula(kind, x, window, strides, padding), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape, window, strides, padding", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
def test_gradients(kind, ties, shape, window, strides, padding, key):
    """Those of the reference, which gives a maximum's gradient to the first of equals."""
    x = jax.random.normal(key, shape)
    x = jnp.round(x) if ties else x
    pool = getattr(pooling, kind)
    y = pool(x, window, strides, padding)
    dy = jax.random.normal(jax.random.fold_in(key, 1), y.shape)
    one, other = (
        jax.jit(jax.grad(lambda x, name=name: (pool(x, window, strides, padding, name) * dy).sum()))(x)
        for name in ("xla", "reference")
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.isclose(one.sum(), dy.sum(), rtol=1e-3) or kind != "max_pool"


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("window, strides", [(2, 2), (2, 1), (3, 2)])
def test_the_first_of_equals_has_the_gradient(implementation, window, strides, key):
    """As in `lax.reduce_window`, whose gradient is an implementation of its own."""
    x = jax.random.randint(key, (4, 7, 7, 3), 0, 3).astype(jnp.float32)
    pool = lambda x: pooling.max_pool(x, window, strides, "VALID", implementation)  # noqa: E731
    dims, steps = (1, window, window, 1), (1, strides, strides, 1)
    lax_pool = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, dims, steps, "VALID")  # noqa: E731
    dy = jax.random.normal(key, pool(x).shape)
    ours, theirs = (jax.vjp(f, x)[1](dy)[0] for f in (pool, lax_pool))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_of_infinities_alone_the_first_that_is_no_padding_has_it(implementation):
    """As in PyTorch and in `lax.reduce_window`."""
    x, dy = jnp.full((1, 4, 4, 1), -jnp.inf), jnp.arange(1.0, 5).reshape(1, 2, 2, 1)
    y, pull = jax.vjp(lambda x: pooling.max_pool(x, 3, 2, 1, implementation), x)
    assert (y == -jnp.inf).all()
    np.testing.assert_array_equal(pull(dy)[0][0, ..., 0], [[1, 2, 0, 0], [3, 4, 0, 0], [0] * 4, [0] * 4])


@pytest.mark.parametrize("window, strides", [(2, None), (3, 2)])
def test_no_select_and_scatter(window, strides):
    """What makes XLA's own gradient slow."""
    gradient = jax.jit(jax.grad(lambda x: pooling.max_pool(x, window, strides).sum()))
    text = gradient.lower(jnp.ones((2, 8, 8, 3))).compile().as_text()
    assert "select-and-scatter" not in text and "reduce-window" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_window_makes_no_large_program(kind):
    """Which XLA would compile for minutes: one of all 1600 taps has 30,000 lines."""
    gradient = jax.jit(jax.grad(lambda x: getattr(pooling, kind)(x, 40).sum()))
    assert len(gradient.lower(jnp.ones((1, 80, 80, 1))).as_text().splitlines()) < 2000


def cube(pool):
    return lambda x: (pool(x) ** 3).sum()


def along(function, v):
    return lambda x: jax.jvp(function, (x,), (v,))[1]


DERIVATIVES = {
    "value": lambda pool, x, v: pool(x),
    "forward": lambda pool, x, v: along(pool, v)(x),
    "reverse": lambda pool, x, v: jax.grad(cube(pool))(x),
    "forward over reverse": lambda pool, x, v: along(jax.grad(cube(pool)), v)(x),
    "reverse over forward": lambda pool, x, v: jax.grad(cube(along(pool, v)))(x) + jax.grad(along(cube(pool), v))(x),
    "reverse over reverse": lambda pool, x, v: jax.grad(lambda x: (jax.grad(cube(pool))(x) * v).sum())(x),
    "remat": lambda pool, x, v: jax.grad(jax.checkpoint(cube(pool)))(x),
}


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    "window, strides, padding", [(2, None, "VALID"), (3, 2, "SAME"), ((5, 4), 1, 2), (5, (6, 11), 2)]
)
@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
def test_under_transformations(kind, window, strides, padding, derivative):
    """Every derivative, of vmaps over any axes and vmapped, is that of the reference in float64."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        x, v = jax.random.normal(key, (2, 2, 3, 8, 7, 2), jnp.float64)

        def compute(name, x, v):
            pool = lambda x: getattr(pooling, kind)(x, window, strides, padding, name)  # noqa: E731
            function = functools.partial(DERIVATIVES[derivative], pool)
            inner = lambda x, v: DERIVATIVES[derivative](jax.vmap(pool), x, v)  # noqa: E731
            last = lambda a: jnp.moveaxis(a, 0, 4)  # noqa: E731
            twice = jax.vmap(jax.vmap(function, 1, 1), 0, 0)
            return {
                "single": function(x[0], v[0]),
                "first axis": jax.vmap(function)(x, v),
                "last axis": jax.vmap(function, 4, 4)(last(x), last(v)),
                "twice": twice(x[:, :, None], v[:, :, None]),
                "x alone": jax.vmap(function, (0, None))(x, v[0]),
                "inside": inner(x, v),
                "map": jax.lax.map(lambda each: function(*each), (x, v)),
            }

        ours, theirs = (jax.jit(functools.partial(compute, name))(x, v) for name in (None, "reference"))
        for how, found in ours.items():
            np.testing.assert_allclose(found, theirs[how], rtol=1e-10, atol=1e-12, err_msg=how)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
def test_on_a_mesh(kind, explicit, key):
    """Images are divided, without a word between the devices; so are those of a shard_map."""
    x = jax.random.normal(key, (4, 9, 8, 3))
    gradient = jax.grad(lambda x: (getattr(pooling, kind)(x, 3, 2, "SAME") ** 3).sum())
    axes = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("a",), axis_types=(axes,))
    over = jax.sharding.PartitionSpec("a")
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, over))
        program = jax.jit(gradient).lower(placed).compile()
        local = jax.jit(jax.shard_map(gradient, in_specs=over, out_specs=over))
        for found in (program(placed), local(placed)):
            np.testing.assert_allclose(found, gradient(x), rtol=1e-5, atol=1e-6)
    assert not any(word in program.as_text() for word in ("all-", "collective-permute"))


def test_what_is_kept_for_the_gradient_of_a_maximum():
    """A byte for each window."""
    _, pull = jax.vjp(lambda x: pooling.max_pool(x, 3, 2), jnp.ones((2, 9, 9, 3)))
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(pull)] == [((2, 4, 4, 3), jnp.int8)]


def test_bfloat16(key):
    x = jax.random.normal(key, (2, 8, 8, 3), jnp.bfloat16)
    for kind in KINDS:
        y = getattr(pooling, kind)(x, 3, 2)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            y.astype(jnp.float32), formula(kind, x.astype(jnp.float32), 3, 2, "VALID"), rtol=2**-8, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_global_pools(kind, key):
    x = jax.random.normal(key, (2, 5, 4, 3))
    pool = getattr(pooling, f"global_{kind}")
    np.testing.assert_allclose(pool(x), KINDS[kind](np.asarray(x, np.float64), axis=(1, 2)), atol=1e-5)
    whole = lambda x: getattr(pooling, kind)(x, (5, 4))[:, 0, 0]  # noqa: E731
    x = jnp.round(x)  # with ties
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (pool, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [*KINDS, *(f"global_{kind}" for kind in KINDS)])
def test_no_images(pool):
    sides = () if "global" in pool else (3, 2, "SAME")
    x = jnp.zeros((0, 8, 7, 3))
    y, pull = jax.vjp(lambda x: getattr(pooling, pool)(x, *sides), x)
    assert y.shape == ((0, 3) if "global" in pool else (0, 4, 4, 3)) and pull(y)[0].shape == x.shape


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_nan_is_the_maximum(implementation, key):
    """Wherever it is in the window; and it has the gradient."""
    x = jax.random.normal(key, (1, 8, 8, 1)).at[0, 2, 3, 0].set(jnp.nan)
    pool = lambda x: pooling.max_pool(x, 3, 1, "VALID", implementation)  # noqa: E731
    y, pull = jax.vjp(pool, x)
    seen = np.zeros((6, 6), bool)
    seen[:3, 1:4] = True
    np.testing.assert_array_equal(np.isnan(y[0, ..., 0]), seen)
    assert pull(jnp.ones_like(y))[0][0, 2, 3, 0] == 9


def test_float64(key):
    with jax.enable_x64(True):
        x = jax.random.normal(key, (2, 7, 6, 3), jnp.float64)
        for kind in KINDS:
            np.testing.assert_allclose(
                getattr(pooling, kind)(x, 3, 2), formula(kind, x, 3, 2, "VALID"), rtol=1e-13, atol=1e-15
            )


@pytest.mark.parametrize("name, needed", [("tpu", "tpu"), ("hopper", "cuda")])
def test_kernels_elsewhere(name, needed):
    with pytest.raises(NotImplementedError, match=f"implementation='{name}' runs on {needed}, and this is cpu"):
        pooling.max_pool(jnp.ones((1, 4, 4, 1)), 2, implementation=name)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"window": 9}, r"window \(9, 9\).*larger than the input \(8, 8\)"),
        ({"window": 0}, "window must be a positive int"),
        ({"window": 1.5}, "window must be a positive int"),
        ({"window": 2, "strides": (1, 2, 3)}, "strides must be"),
        ({"window": 2, "padding": -1}, "padding must be"),
        ({"window": 2, "padding": "FULL"}, "padding must be"),
        ({"window": 2, "padding": None}, "padding must be"),
        ({"window": 2, "padding": (0.5, 1)}, "padding must be"),
        ({"window": 2, "padding": 2}, "padding .* must be smaller than the window"),
        ({"window": 2, "implementation": "cuda"}, "implementation must be"),
    ],
)
def test_mistakes(arguments, said):
    with pytest.raises(ValueError, match=said):
        pooling.max_pool(jnp.ones((1, 8, 8, 1)), **arguments)
    with pytest.raises(ValueError, match="x must be"):
        pooling.max_pool(jnp.ones((8, 8)), 2)


@pytest.mark.parametrize("pool", [*KINDS, *(f"global_{kind}" for kind in KINDS)])
@pytest.mark.parametrize("x", [jnp.ones((8, 8, 3)), jnp.ones((1, 8, 8, 3), jnp.int32)], ids=["no batch", "int32"])
def test_what_is_no_image(pool, x):
    with pytest.raises(ValueError, match=r"x must be \(N, H, W, C\), float32 or bfloat16, not \(.*8, 8, 3\)"):
        getattr(pooling, pool)(x, *([] if "global" in pool else [2]))


def test_the_choice_goes_by_the_measurement(monkeypatch):
    """By the nearest pooling of the same kind and window; what can't run here is passed over."""
    rows = [
        {"layer": {"kind": kind, "size": 32, "channels": 64, "window": 3, "strides": 2}, "seconds": seconds}
        for kind, seconds in (
            ("max", {"hopper": 1.0, "reference": 2.0, "xla": 3.0, "Flax": 0.5}),
            ("average", {"reference": 3.0, "xla": 2.0}),
        )
    ]
    monkeypatch.setattr(backends, "measured", lambda platform, field: rows)
    x = jnp.ones((2, 8, 8, 3))
    chosen = lambda kind: backends.choose(x, (3, 3), geometry((8, 8), (3, 3), 2, "SAME"), None, kind)  # noqa: E731
    assert chosen("max") == "reference" and chosen("average") == "xla"
    monkeypatch.setattr(backends, "measured", lambda platform, field: [])
    assert chosen("max") == "xla"
