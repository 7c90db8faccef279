import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.convolution import causal_convolution, convolution, convolution_transpose, depthwise_convolution
from kernels.convolution.epilogue import ACTIVATIONS
from tests.kernels.convolution.cases import LAYERS

CASES = [
    # x, w, strides, padding, dilation, groups
    ((2, 8, 7, 3), (3, 3, 3, 5), 1, "SAME", 1, 1),
    ((2, 8, 7, 3), (3, 3, 3, 5), 2, "SAME", 1, 1),
    ((2, 9, 9, 4), (3, 3, 4, 6), 1, "VALID", 1, 1),
    ((1, 9, 8, 20), (3, 3, 20, 24), 1, 1, 1, 1),
    ((1, 12, 12, 3), (7, 7, 3, 8), 2, 3, 1, 1),
    ((1, 15, 15, 3), (11, 11, 3, 4), 4, 2, 1, 1),
    ((2, 6, 6, 8), (1, 1, 8, 4), 1, "SAME", 1, 1),
    ((2, 6, 6, 8), (1, 1, 8, 4), 2, "VALID", 1, 1),
    ((2, 9, 9, 4), (3, 3, 4, 4), 1, "SAME", 2, 1),
    ((2, 9, 9, 4), (3, 3, 2, 6), 1, "SAME", 1, 2),
    ((2, 9, 9, 4), (3, 3, 1, 8), 1, "SAME", 1, 4),
    ((2, 9, 9, 4), (3, 3, 1, 4), 2, ((0, 1), (2, 0)), 1, 4),
    ((2, 5, 5, 4), (2, 4, 4, 3), (2, 1), "SAME", 1, 1),
    # Images side by side in a row: more channels than NARROW.
    ((3, 7, 6, 17), (3, 3, 17, 18), 1, "SAME", 1, 1),
    ((3, 7, 6, 17), (3, 3, 17, 18), 2, ((0, 1), (1, 0)), 1, 1),
    ((3, 9, 8, 17), (3, 2, 17, 18), (1, 3), 1, (1, 2), 1),
    ((3, 5, 4, 17), (1, 1, 17, 18), 2, "VALID", 1, 1),
    ((400, 3, 3, 17), (2, 2, 17, 17), 1, "VALID", 1, 1),
]


def make(case, dtype=jnp.float32):
    (shape, kernel, strides, padding, dilation, groups), key = case, jax.random.key(0)
    x = jax.random.normal(key, shape, dtype)
    w = jax.random.normal(jax.random.fold_in(key, 1), kernel, dtype)
    bias = jax.random.normal(jax.random.fold_in(key, 2), kernel[3:], dtype)
    return (x, w, bias), {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}


def formula(x, w, bias, strides, padding, dilation, groups):
    """Output pixel by output pixel, in float64."""
    x, w, bias = (np.asarray(a, np.float64) for a in (x, w, bias))
    pair = lambda v: (v, v) if isinstance(v, int) else v  # noqa: E731
    (sh, sw), (dh, dw), (kh, kw) = pair(strides), pair(dilation), w.shape[:2]
    if padding == "SAME":
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, s, d, k in zip(x.shape[1:3], (sh, sw), (dh, dw), (kh, kw), strict=True)
        ]
        padding = [(t // 2, t - t // 2) for t in totals]
    elif padding == "VALID":
        padding = [(0, 0), (0, 0)]
    else:
        padding = [pair(p) for p in pair(padding)]
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (x.shape[1] - dh * (kh - 1) - 1) // sh + 1, (x.shape[2] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), rows, columns, w.shape[3])) + bias
    c, k = w.shape[2], w.shape[3] // groups
    for p in range(rows):
        for q in range(columns):
            patch = x[:, p * sh : p * sh + dh * kh : dh, q * sw : q * sw + dw * kw : dw][:, :kh, :kw]
            for g in range(groups):
                part = np.einsum("nijc,ijck->nk", patch[..., g * c : (g + 1) * c], w[..., g * k : (g + 1) * k])
                y[:, p, q, g * k : (g + 1) * k] += part
    return y


def error(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", [None, "reference", "xla", "lax"])
def test_values(case, implementation):
    operands, options = make(case)
    y = convolution(*operands, **options, implementation=implementation)
    assert error(y, formula(*operands, **options)) < 2e-6


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("implementation", ["xla", "lax"])
def test_layers_of_networks(implementation, name):
    """Values and gradients, against the formula in float64."""
    layer = LAYERS[name]
    call = convolution_transpose if layer.transposed else convolution

    def run(implementation, *given):
        y, pull = jax.vjp(lambda x, w: call(x, w, **layer.options, implementation=implementation), *given)
        return y, *pull(y)

    x, w = (np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(layer.shapes(2)))
    found = run(implementation, jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32))
    with jax.enable_x64(True):
        wanted = run("reference", jnp.asarray(x), jnp.asarray(w))
        assert wanted[0].dtype == jnp.float64
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and error(ours, theirs) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_summed_in_float32(case):
    operands, options = make(case, jnp.bfloat16)
    y = convolution(*operands, **options)
    assert y.dtype == jnp.bfloat16
    assert error(y, formula(*operands, **options)) < 3e-3  # one rounding, by 2^-9 at most


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    operands, options = make(case)
    dy = jax.random.normal(jax.random.key(3), convolution(*operands, **options).shape)

    def gradients(implementation):
        loss = lambda *a: (convolution(*a, **options, implementation=implementation) * dy).sum()  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(*operands)

    for ours, reference in zip(gradients(None), gradients("reference"), strict=True):
        assert error(ours, reference) < 3e-6


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4], CASES[10]])
def test_second_derivatives(case):
    (x, w, bias), options = make(case)

    def product(implementation):
        """A Hessian times a vector."""
        loss = lambda x, w: (convolution(x, w, **options, implementation=implementation) ** 3).sum()  # noqa: E731
        both = lambda x, w: sum((g**2).sum() for g in jax.grad(loss, argnums=(0, 1))(x, w))  # noqa: E731
        return jax.grad(both, argnums=(0, 1))(x, w)

    for ours, reference in zip(product(None), product("reference"), strict=True):
        assert error(ours, reference) < 1e-4


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[10]])
def test_vmap_and_loops(case, axes):
    (x, w, _), options = make(case)
    key = jax.random.key(4)
    xs = jax.random.normal(key, (3, *x.shape)) if axes[0] == 0 else x
    ws = jax.random.normal(jax.random.fold_in(key, 1), (3, *w.shape)) if axes[1] == 0 else w
    each = lambda i: (xs[i] if axes[0] == 0 else x, ws[i] if axes[1] == 0 else w)  # noqa: E731
    loss = lambda x, w: (convolution(x, w, **options) ** 2).sum()  # noqa: E731
    gradient = jax.grad(loss, argnums=(0, 1))
    batched = jax.jit(jax.vmap(gradient, in_axes=axes))(xs, ws)
    for i in range(3):
        for ours, single in zip(batched, gradient(*each(i)), strict=True):
            assert error(ours[i], single) < 3e-6
    looped = jax.lax.map(lambda _: loss(*each(0)), jnp.arange(2))
    np.testing.assert_allclose(looped, loss(*each(0)), rtol=1e-5)


@pytest.mark.parametrize("implementation", [None, "reference", "xla"])
@pytest.mark.parametrize("w, groups", [((3, 3, 4, 8), 1), ((1, 1, 4, 8), 1), ((3, 3, 1, 8), 4), ((3, 3, 2, 8), 2)])
def test_no_images(w, groups, implementation):
    """Nothing comes out, and the weights' gradient is zero."""
    x, w = jnp.ones((0, 6, 7, 4)), jnp.ones(w)
    call = lambda x, w: convolution(x, w, strides=2, groups=groups, implementation=implementation)  # noqa: E731
    y, pull = jax.vjp(call, x, w)
    dx, dw = pull(y)
    assert y.shape == (0, 3, 4, 8) and dx.shape == x.shape and dw.shape == w.shape and not dw.any()


@pytest.mark.parametrize("implementation", [None, "reference", "xla"])
@pytest.mark.parametrize("channels, features", [(4, 0), (0, 8), (0, 0)])
def test_no_channels(channels, features, implementation):
    """Nothing comes out, or zeros; gradients and their derivatives are zero."""
    x, w = jnp.ones((2, 6, 7, channels)), jnp.ones((3, 3, channels, features))
    call = lambda x, w: convolution(x, w, implementation=implementation)  # noqa: E731
    y, pull = jax.vjp(call, x, w)
    assert y.shape == (2, 6, 7, features) and not y.any()
    for found, given in zip(pull(jnp.ones_like(y)), (x, w), strict=True):
        assert found.shape == given.shape and not found.any()
    assert jax.jvp(lambda x: jax.grad(lambda x: call(x, w).sum())(x), (x,), (x,))[1].shape == x.shape


@pytest.mark.parametrize(
    "x, w, options, said",
    [
        ((1, 8, 8, 3), (0, 3, 3, 8), {}, r"w must have at least one row and one column, not \(0, 3, 3, 8\)"),
        ((1, 8, 8, 3), (3, 3, 4, 8), {}, "groups 1 doesn't divide the channels"),
        ((1, 8, 8, 4), (3, 3, 2, 5), {"groups": 2}, "groups 2"),
        ((8, 8, 3), (3, 3, 3, 8), {}, "x must be"),
        ((1, 2, 2, 3), (3, 3, 3, 8), {"padding": "VALID"}, r"window \(3, 3\)"),
        (
            (1, 8, 8, 3),
            (3, 3, 3, 8),
            {"padding": -1},
            r"padding must be .* for an input \(8, 8\) and a window \(3, 3\), not -1",
        ),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"strides": 0}, "strides"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"strides": 1.5}, "strides must be a positive int or a pair of them, not 1.5"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"padding": None}, "padding must be"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"padding": (0.5, 1)}, "padding must be"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"bias": jnp.ones(7)}, "bias must be"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"bias": jnp.ones(8, jnp.bfloat16)}, r"bias must be float32 \(8,\), not bfloat16"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"residual": jnp.ones((1, 8, 8, 7))}, r"residual must be float32 \(1, 8, 8, 8\)"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"shift": jnp.ones((1, 8))}, "shift must be"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"activation": "softmax"}, "activation must be None or one of relu"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"implementation": "fast"}, "implementation must be"),
    ],
)
def test_mistakes(x, w, options, said):
    with pytest.raises(ValueError, match=said):
        convolution(jnp.ones(x), jnp.ones(w), **options)


def test_a_mix_of_dtypes():
    with pytest.raises(
        ValueError, match=r"both be float32 or both bfloat16, not float32 \(1, 8, 8, 3\) and bfloat16 \(3, 3, 3, 8\)"
    ):
        convolution(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 8), jnp.bfloat16))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("case", [CASES[1], CASES[9]])
def test_what_follows(case, activation):
    """Bias, scale, shift, residual and activation, and the gradients of them all, against PyTorch in float64."""
    torch = pytest.importorskip("torch")
    (x, w, bias), options = make(case)
    key = jax.random.key(5)
    scale, shift = (jax.random.normal(jax.random.fold_in(key, i), bias.shape) for i in range(2))
    shape = convolution(x, w, **options).shape
    residual, dy = (jax.random.normal(jax.random.fold_in(key, i), shape) for i in (2, 3))

    def ours(x, w, bias, scale, shift, residual):
        more = {"scale": scale, "shift": shift, "residual": residual, "activation": activation}
        return convolution(x, w, bias, **options, **more)

    theirs = {
        None: lambda z: z,
        "gelu": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    theirs = theirs[activation] if activation in theirs else getattr(torch.nn.functional, activation)
    operands = (x, w, bias, scale, shift, residual)
    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in operands]
    tx, tw, tbias, tscale, tshift, tresidual = tensors
    strides, groups = options["strides"], options["groups"]
    height, width = x.shape[1:3]
    totals = [max((-(-n // strides) - 1) * strides + 3 - n, 0) for n in (width, height)]
    pads = [side for total in totals for side in (total // 2, total - total // 2)]
    padded = torch.nn.functional.pad(tx.permute(0, 3, 1, 2), pads)
    sums = torch.nn.functional.conv2d(padded, tw.permute(3, 2, 0, 1), stride=strides, groups=groups)
    y = theirs((sums.permute(0, 2, 3, 1) + tbias) * tscale + tshift + tresidual)
    wanted = torch.autograd.grad(y, tensors, torch.tensor(np.asarray(dy, np.float64)))
    value, pull = jax.vjp(ours, *operands)
    assert error(value, y.detach()) < 3e-6
    for found, gradient in zip(pull(dy), wanted, strict=True):
        assert error(found, gradient) < 1e-5


@pytest.mark.parametrize("implementation", [None, "reference", "xla", "lax"])
@pytest.mark.parametrize(
    "size, kernel, strides, padding, dilation, groups",
    [
        ((5, 6), 4, 2, "SAME", 1, 1),
        ((5, 6), 3, 2, "VALID", 1, 1),
        ((5, 6), 4, 2, 1, 1, 1),
        ((4, 4), 3, 1, "SAME", 1, 1),
        ((4, 3), 2, 3, "VALID", 1, 1),
        ((5, 4), 3, 2, ((0, 1), (2, 0)), 2, 1),
        ((5, 4), 3, 2, "SAME", 1, 2),
    ],
)
def test_the_transpose(size, kernel, strides, padding, dilation, groups, implementation):
    """Each input spread over its window, and with it the gradients."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (2, *size, 4))
    w = jax.random.normal(jax.random.fold_in(key, 1), (kernel, kernel, 4 // groups, 6))
    bias = jax.random.normal(jax.random.fold_in(key, 2), (6,))
    reach = dilation * (kernel - 1)
    full = [strides * (n - 1) + reach + 1 for n in size]
    sides = [(0, 0)] * 2 if padding == "VALID" else [(padding,) * 2] * 2 if isinstance(padding, int) else padding
    if padding == "SAME":
        totals = [max(f - n * strides, 0) for f, n in zip(full, size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in totals]

    def spread(x, w, bias):
        y = jnp.zeros((2, *full, 6))
        for i in range(kernel):
            for j in range(kernel):
                parts = [
                    jnp.einsum("npqc,ck->npqk", x[..., g * (4 // groups) : (g + 1) * (4 // groups)], part)
                    for g, part in enumerate(jnp.split(w[i, j], groups, axis=1))
                ]
                rows, columns = (
                    slice(d, d + strides * (n - 1) + 1, strides)
                    for d, n in zip((dilation * i, dilation * j), size, strict=True)
                )
                y = y.at[:, rows, columns].add(jnp.concatenate(parts, axis=-1))
        (top, bottom), (left, right) = sides
        return jnp.tanh(y[:, top : full[0] - bottom, left : full[1] - right] + bias[None, None, None])

    def ours(x, w, bias):
        options = {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups, "activation": "tanh"}
        return convolution_transpose(x, w, bias, **options, implementation=implementation)

    wanted, found = spread(x, w, bias), ours(x, w, bias)
    assert found.shape == wanted.shape and error(found, wanted) < 3e-6
    dy = jax.random.normal(jax.random.fold_in(key, 3), wanted.shape)
    gradients = (jax.grad(lambda *a, f=f: (f(*a) * dy).sum(), argnums=(0, 1, 2))(x, w, bias) for f in (ours, spread))
    for a, b in zip(*gradients, strict=True):
        assert error(a, b) < 1e-5


def test_the_transpose_is_pytorchs():
    torch = pytest.importorskip("torch")
    key = jax.random.key(0)
    x, w = jax.random.normal(key, (2, 5, 6, 4)), jax.random.normal(jax.random.fold_in(key, 1), (4, 4, 4, 3))
    tensors = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2), torch.tensor(np.asarray(w)).permute(2, 3, 0, 1)
    wanted = torch.nn.functional.conv_transpose2d(*tensors, stride=2, padding=1).permute(0, 2, 3, 1)
    assert error(convolution_transpose(x, w, strides=2, padding=1), wanted) < 3e-6


def test_padding_that_leaves_nothing():
    with pytest.raises(ValueError, match="leaves nothing"):
        convolution_transpose(jnp.ones((1, 1, 1, 2)), jnp.ones((3, 3, 2, 2)), padding=2)


@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise(multiplier):
    torch = pytest.importorskip("torch")
    key = jax.random.key(0)
    x, w = jax.random.normal(key, (2, 7, 6, 4)), jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 4, multiplier))
    kernel = torch.tensor(np.asarray(w)).permute(2, 3, 0, 1).reshape(-1, 1, 3, 3)
    wanted = torch.nn.functional.conv2d(
        torch.tensor(np.asarray(x)).permute(0, 3, 1, 2), kernel, stride=2, padding=1, groups=4
    )
    found = depthwise_convolution(x, w, strides=2, padding=1, activation="relu")
    assert error(found, torch.relu(wanted).permute(0, 2, 3, 1)) < 3e-6
    with pytest.raises(ValueError, match="w must be"):
        depthwise_convolution(x, w[:, :, :3])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dilation", [1, 3])
def test_causal(dilation, groups):
    """PyTorch's convolution of what is padded on the left; and no step sees a later one."""
    torch = pytest.importorskip("torch")
    key = jax.random.key(0)
    x, w = jax.random.normal(key, (2, 9, 4)), jax.random.normal(jax.random.fold_in(key, 1), (3, 4 // groups, 8))
    residual = jax.random.normal(jax.random.fold_in(key, 2), (2, 9, 8))
    call = functools.partial(causal_convolution, w=w, dilation=dilation, groups=groups, residual=residual)
    padded = torch.nn.functional.pad(torch.tensor(np.asarray(x)).permute(0, 2, 1), (2 * dilation, 0))
    kernel = torch.tensor(np.asarray(w)).permute(2, 1, 0)
    wanted = torch.nn.functional.conv1d(padded, kernel, dilation=dilation, groups=groups).permute(0, 2, 1)
    assert error(call(x), wanted + torch.tensor(np.asarray(residual))) < 3e-6
    later = jax.jacobian(lambda x: call(x).sum(axis=(0, 2)))(x)  # (T, N, T, C)
    assert not jnp.triu(jnp.abs(later).sum(axis=(1, 3)), 1).any()
    with pytest.raises(ValueError, match="x must be"):
        causal_convolution(x[0], w)
