"""The TPU's kernels in Pallas's interpreter, which looks for races and for reads of what was never written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from kernels import target
from kernels.attention import attention, backends, masks
from kernels.attention.request import Arrays, Request
from kernels.attention.tpu import plan
from tests.kernels.attention import modes
from tests.kernels.attention.cases import (
    BANDS,
    BOUNDS,
    CASES,
    HEADS,
    SPAN,
    check,
    check_numbers,
    check_poison,
    draw,
    inputs,
    results,
)


@pytest.fixture(autouse=True)
def wide():
    """float64 for the formula."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of queries and keys, of which the last are not whole."""
    for name, value in {"LANES": 8, "FORWARD": (24, 32), "BACKWARD": (24, 32)}.items():
        monkeypatch.setattr(plan, name, value)
    # A quarter of it for float32, as on the chip, would be but more steps.
    fit = plan.fit
    monkeypatch.setattr(plan, "fit", lambda tile, limit, dtype: fit(tile, limit, jnp.bfloat16))


@pytest.fixture(autouse=True)
def interpreted(request):
    pltpu.reset_tpu_interpret_mode_state()
    detect = "bfloat16" not in request.node.name  # float32 has the same accesses, and the detector takes its time
    with target.interpreted(pltpu.InterpretParams(detect_races=detect, uninitialized_memory="nan")):
        yield
    races = interpret_pallas_call.races
    assert races is None or not races.races_found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, dtype):
    check("tpu", case, dtype)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1, 32),
        (1, 1, 70, 4, 1, 8),
        (1, 3, 60, 6, 2, 40),
        (2, 65, 30, 2, 2, 96),
        (1, 33, 33, 1, 1, 256),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", ["plain", "causal"])
def test_shapes(shape, case):
    """T of 1, lengths that no tile divides, several query heads on one of keys, head dims of all sizes."""
    # A norm over a single number, or over few rows, is no norm of a sum of hundreds of products.
    check("tpu", case, "float32", 4 * BOUNDS["float32"], inputs(shape))


def test_derivatives():
    """In forward mode, and of the gradients: made in plain JAX of what the kernels return."""
    modes.check("tpu", "everything", modes.PRODUCTS, "float32", 2 * BOUNDS["float32"])


def test_float16():
    check("tpu", "causal", "float16")


@settings(max_examples=4, deadline=None)
@given(**BANDS)
@example(length=9, span=63, left=7, right=0, causal=True)
def test_every_band(length, span, left, right, causal):
    """Tiles are skipped by arithmetic on their corners: whatever the lengths and the window, none that counts."""
    asked = {"is_causal": causal, "local_window_size": (left, right)}
    arrays = inputs((1, length, span, 1, 1, 8))
    wanted, found = (results(i, "float32", arrays, **asked) for i in ("reference", "tpu"))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_nothing_is_read_beyond_the_lengths():
    check_poison("tpu", "float32", jnp.nan)


def test_rows_without_keys():
    """Output 0, lse -inf, gradient 0."""
    query, key, value, *_ = (jnp.asarray(x, jnp.float32) for x in inputs())
    asked = {"key_value_seq_lengths": jnp.array([0, 4]), "implementation": "tpu"}

    def loss(*qkv):
        out, lse = attention(*qkv, return_residual=True, **asked)
        return out.sum(), (out, lse)

    gradients, (out, lse) = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    assert not out[0].any() and (lse[0] == -jnp.inf).all() and jnp.isfinite(lse[1]).all()
    assert not any(x[0].any() for x in gradients) and all(jnp.isfinite(x).all() for x in gradients)


def test_more_tiles_than_the_table_has_room_for(monkeypatch):
    monkeypatch.setattr(plan, "TABLE", 4)
    check("tpu", "everything", "float32")


def test_the_backward_pass_is_deterministic():
    asked = CASES["causal"] | {"bias": draw(9, HEADS, 1, SPAN)}
    first, second = (results("tpu", "float32", inputs(), **asked) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_vmap_and_remat():
    query, key, value, *_ = (jnp.asarray(x, jnp.float32) for x in inputs())
    call = functools.partial(attention, is_causal=True, implementation="tpu")
    with target.interpreted(True):  # the TPU's interpreter knows neither
        single = jax.vmap(lambda q, k, v: call(q, k, v))(query, key, value)  # without a batch
        wanted = jax.grad(lambda q: call(q, key, value).sum())(query)
        again = jax.jit(jax.grad(lambda q: jax.checkpoint(call)(q, key, value).sum()))(query)
    np.testing.assert_allclose(single, call(query, key, value), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(again, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 2], ids=["batch", "heads"])
def test_on_a_mesh(axis):
    """Batch or heads divided over two devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec(*(None,) * axis, "data")
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs((2, 20, 20, 2, 2, 8))[:3]]
    call = functools.partial(attention, is_causal=True, implementation="tpu")
    divided = jax.shard_map(call, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)
    wanted = attention(*arrays, is_causal=True, implementation="reference")
    np.testing.assert_allclose(jax.jit(divided)(*arrays), wanted, rtol=1e-5, atol=1e-5)


def test_what_it_refuses():
    x = jnp.ones((1, 8, 1, 8))
    with pytest.raises(NotImplementedError, match="implementation='tpu' has no float64"):
        attention(x, x, x, implementation="tpu")
    x = jnp.ones((1, 8, 1, 512), jnp.float32)
    with pytest.raises(NotImplementedError, match="has head dims up to 256, not 512"):
        attention(x, x, x, implementation="tpu")


def test_a_mesh_that_is_left_to_the_compiler():
    x = jnp.ones((2, 8, 1, 8), jnp.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    with jax.set_mesh(mesh), pytest.raises(NotImplementedError, match="within jax.shard_map, or by explicit axes"):
        attention(x, x, x, implementation="tpu")


def test_it_runs_on_tpus_alone():
    request, arrays = (
        Request(1.0, None, masks.Band(), 0.0),
        Arrays(*[jnp.ones((1, 8, 1, 8))] * 3, None, None, None),
    )
    with target.interpreted(None):
        assert backends.refusal(request, arrays, "tpu") == "runs on tpu, and this is cpu"


def test_dropout_by_the_numbers_of_heads():
    check_numbers("tpu", BOUNDS["float32"])
