"""FLOPs, bytes and collectives read from compiled programs, against XLA's own counts and against the theory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from deeplearn.parallel import cost, hlo
from deeplearn.parallel import mesh as meshes


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


CASES = {
    "product": (lambda x, y: x @ y, shape(8, 16), shape(16, 32)),
    "batched": (lambda x, y: jnp.einsum("bij,bkj->bik", x, y), shape(5, 8, 16), shape(5, 4, 16)),
    "convolution": (
        lambda x, w: lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        shape(2, 9, 8, 3),
        shape(3, 5, 3, 4),
    ),
    "its input's gradient": (
        lambda dy, w: lax.conv_general_dilated(
            dy, w, (1, 1), ((2, 1), (1, 1)), lhs_dilation=(2, 1), dimension_numbers=("NHWC", "HWOI", "NHWC")
        ),
        shape(2, 5, 8, 4),
        shape(3, 3, 3, 4),
    ),
    "groups": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        ),
        shape(2, 9, 8, 8),
        shape(3, 3, 2, 12),
    ),
    "groups of examples": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), batch_group_count=2
        ),
        shape(4, 9, 8, 8),
        shape(3, 3, 8, 6),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_flops_are_xlas(name):
    """Of the program as it is given to XLA, of which XLA's own count has no loops to get wrong."""
    function, *arguments = CASES[name]
    lowered = jax.jit(function).lower(*arguments)
    assert cost.of(lowered.as_text(dialect="hlo")).flops == lowered.cost_analysis()["flops"]


def test_loops_count_as_often_as_they_turn():
    """Forward and backward, nested, and in a condition the dearest branch; XLA counts each once."""
    w = shape(6, 8, 8)

    def layer(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0], None

    def loss(w, x):
        return lax.scan(layer, x, w)[0].sum()

    once = 2 * 4 * 8 * 8
    for text in (
        compiled(jax.grad(loss), w, shape(4, 8)).as_text(),
        jax.jit(jax.grad(loss)).lower(w, shape(4, 8)).as_text(dialect="hlo"),
    ):
        assert cost.of(text).flops == 6 * 3 * once * 3

    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    switched = compiled(lambda i, x: lax.switch(i, branches, x), shape(dtype=jnp.int32), shape(8, 8))
    assert cost.of(switched.as_text()).flops == 2 * 2 * 8**3


def test_a_loop_of_unknown_length():
    """Of the program, it is its steps; within, it is said to be unknown."""

    def steps(n, x):
        return lax.fori_loop(0, n, lambda _, x: x @ x, x)

    found = cost.of(compiled(steps, shape(dtype=jnp.int32), shape(8, 8)).as_text())
    assert (found.flops, found.unknown) == (2 * 8**3, 0)
    within = lambda n, x: lax.fori_loop(0, 5, lambda _, x: steps(n, x), x)  # noqa: E731
    found = cost.of(compiled(within, shape(dtype=jnp.int32), shape(8, 8)).as_text())
    assert (found.flops, found.unknown) == (5 * 2 * 8**3, 1)

    def until(x):  # whose constant is no number of turns
        return lax.while_loop(lambda state: state[0] > 3, lambda state: (state[0] // 2, state[1] @ state[1]), (64, x))

    found = cost.of(jax.jit(lambda x: until(x)[1]).lower(shape(8, 8)).as_text(dialect="hlo"))
    assert found.flops == 2 * 8**3


def test_memory_that_is_moved():
    """Each array once; of a stack that a loop reads from and writes to, a row at each turn."""
    n = 1024
    add = compiled(lambda x, y: x + y, shape(n), shape(n))
    assert cost.of(add.as_text()).moved == 3 * 4 * n
    rows = compiled(lambda x: lax.map(lambda row: jnp.cumsum(row) * 2, x), shape(64, n))
    assert 2 * 64 * n * 4 <= cost.of(rows.as_text()).moved < 64 * 20 * n * 4  # not 64 stacks, of which each has 64 rows


def exchange(kind, mesh, n):
    """One collective of an array of 64 x 16 float32, and what a device sends."""
    axis, size = "data", 64 * 16 * 4
    return {
        "all-gather": (lambda x: lax.all_gather(x, axis, tiled=True), ("data",), (), size * (n - 1) / n),
        "all-reduce": (lambda x: lax.psum(x, axis), (), (), size * 2 * (n - 1) / n),
        "reduce-scatter": (lambda x: lax.psum_scatter(x, axis, tiled=True), (), ("data",), size * (n - 1) / n),
        "all-to-all": (
            lambda x: lax.all_to_all(x, axis, 1, 0, tiled=True),
            ("data",),
            (None, "data"),
            size / n * (n - 1) / n,
        ),
        "collective-permute": (
            lambda x: lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)]),
            ("data",),
            ("data",),
            size / n,
        ),
    }[kind]


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("kind", cost.COLLECTIVES)
def test_what_a_collective_sends(kind, n):
    mesh = meshes.parse(f"data:{n},fsdp:{8 // n}")
    function, given, result, sent = exchange(kind, mesh, n)
    divided = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec(*given), out_specs=PartitionSpec(*result), check_vma=False
    )
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*given)))
    three = compiled(lambda x: lax.fori_loop(0, 3, lambda _, total: total + divided(x * total.sum()), divided(x)), x)
    found = cost.of(three.as_text())
    assert found.counts[kind] == 4 and found.sent[kind] == pytest.approx(4 * sent)


def test_the_text_of_accelerators():
    """What the compilers of TPUs and of CUDA write otherwise than that of a CPU."""
    text = """HloModule jit_step

%all-reduce-scatter.clone (input: bf16[64,32]) -> bf16[64,8] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.4 = bf16[64,32]{0,1:T(8,128)(2,1)} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = bf16[64,8]{0,1} dynamic-slice(%all-reduce.4, %zero, %at), dynamic_slice_sizes={64,8}
}

ENTRY %main (x: bf16[64,32], w: f32[32,16]) -> bf16[64,8] {
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %w = f32[32,16]{1,0:T(8,128)} parameter(1)
  %copy-start.1 = (f32[32,16]{1,0:T(8,128)S(1)}, f32[32,16]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done.1 = f32[32,16]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %all-gather-start.1 = ((f32[32,16]{1,0}), (f32[32,64]{1,0})) all-gather-start(%copy-done.1), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={1}
  %all-gather-done.1 = (f32[32,64]{1,0}) all-gather-done(%all-gather-start.1)
  %kernel = f32[64,32]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"1234","transcendentals":"5"}}}
  %gemm = (f32[64,16]{1,0}, s8[100]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %scattered = bf16[64,8]{0,1} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.clone
}
"""  # noqa: E501
    found = cost.of(text)
    assert found.flops == 1234 + 2 * 64 * 32 * 16
    assert found.counts == {"reduce-scatter": 1, "all-gather": 1}
    assert found.sent == {"reduce-scatter": 64 * 32 * 2 * 3 / 4, "all-gather": 4 * 32 * 16 * 4 * 3 / 4}
    copied = {instruction.name: instruction for instruction in hlo.parse(text)[0]["main"]}
    traffic = functools.partial(cost.traffic, here=copied, computations=hlo.parse(text)[0])
    assert traffic(copied["copy-start.1"]) == 32 * 16 * 4  # read, and written to memory on the chip
    assert traffic(copied["copy-done.1"]) == traffic(copied["all-gather-start.1"]) == 0


def test_cudnn_computes_what_xla_does():
    """A gradient's operands are in another order than its dim_labels say, which are those of the forward pass."""
    labels = 'window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$conv'
    x, w, y = "f32[2,9,8,3]{3,2,1,0}", "f32[3,3,3,4]{3,2,1,0}", "f32[2,5,4,4]{3,2,1,0}"
    counts = []
    for first, second, result, name in ((x, w, y, "Forward"), (y, w, x, "BackwardInput"), (x, y, w, "BackwardFilter")):
        lines = [f"  %a = {first} parameter(0)", f"  %b = {second} parameter(1)"]
        lines.append(f'  ROOT %c = ({result}, u8[0]{{0}}) custom-call(%a, %b), {labels}{name}"')
        counts.append(cost.of("\n".join(["ENTRY %main (a: f32[]) -> f32[] {", *lines, "}"])).flops)
    convolve = lambda x, w: lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    wanted = jax.jit(convolve).lower(shape(2, 9, 8, 3), shape(3, 3, 3, 4)).cost_analysis()["flops"]
    np.testing.assert_array_equal(counts, wanted)
