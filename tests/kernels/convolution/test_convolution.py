import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.convolution import convolution

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


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_summed_in_float32(case):
    operands, options = make(case, jnp.bfloat16)
    y = convolution(*operands, **options)
    assert y.dtype == jnp.bfloat16
    assert error(y, formula(*operands, **options)) < 6e-3  # two roundings of 2^-9, the sum's and the bias's


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


@pytest.mark.parametrize(
    "x, w, options, said",
    [
        ((1, 8, 8, 3), (3, 3, 4, 8), {}, "groups 1 doesn't divide the channels"),
        ((1, 8, 8, 4), (3, 3, 2, 5), {"groups": 2}, "groups 2"),
        ((8, 8, 3), (3, 3, 3, 8), {}, "x must be"),
        ((1, 2, 2, 3), (3, 3, 3, 8), {"padding": "VALID"}, r"window \(3, 3\)"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"padding": -1}, "padding"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"strides": 0}, "strides"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"bias": jnp.ones(7)}, "bias must be"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"bias": jnp.ones(8, jnp.bfloat16)}, "all be float32 or all bfloat16"),
        ((1, 8, 8, 3), (3, 3, 3, 8), {"implementation": "fast"}, "implementation must be"),
    ],
)
def test_mistakes(x, w, options, said):
    with pytest.raises(ValueError, match=said):
        convolution(jnp.ones(x), jnp.ones(w), **options)
