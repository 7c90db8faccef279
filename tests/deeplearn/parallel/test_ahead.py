"""What is known of a step before it runs: FLOPs of the formulas, memory, limits."""

from collections import Counter

import jax
import pytest

from deeplearn import experiment
from deeplearn.commands import compile as command
from deeplearn.data import blank
from deeplearn.errors import UserError
from deeplearn.parallel import ahead, cost, topologies
from deeplearn.parallel import mesh as meshes


def build(name, **fields):
    with blank.instead():
        return experiment.load(name).build(experiment.configure(name, fields))


@pytest.mark.parametrize("size", ["125m", "1.3b", "175b"])
def test_flops_of_a_transformer(size):
    """6 N a token, where the embeddings of tokens are in a product and those of positions are not, and attention's
    scores and sums, 12 T width a layer (Chowdhery et al. 2022, PaLM, appendix B)."""
    e = build("gpt3", size=size, remat="none", batch_size=4, accumulate=1)
    params = jax.eval_shape(e.task.init, jax.random.key(0))[0]
    sizes = {jax.tree_util.keystr(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(params)}
    in_products = sum(n for path, n in sizes.items() if "kernel" in path or "token_embedding" in path)
    depth, _, width = params["layers"]["out"]["kernel"].shape
    tokens = 4 * 2048
    assert ahead.model_flops(e) == 6 * in_products * tokens + 12 * 2048 * width * depth * tokens


@pytest.mark.parametrize("name, fields", [("gpt2", {}), *(("gpt3", {"size": size}) for size in ("125m", "175b"))])
def test_recipes_for_many_devices_divide_over_eight(name, fields):
    e = build(name, **fields)
    meshes.check_batch_size(e.batch_size, meshes.parse("fsdp:8"), e.config.accumulate)


def test_flops_of_a_network():
    """A product forward and two backward, of the first layer one: its input has no gradient."""
    e = build("digits_mlp")
    params = jax.eval_shape(e.task.init, jax.random.key(0))[0]
    kernels = [x.shape for x in jax.tree.leaves(params) if x.ndim == 2]
    products = [(2 if inputs == 8 * 8 else 3) * inputs * outputs for inputs, outputs in kernels]
    assert ahead.model_flops(e) == 2 * e.batch_size * sum(products)


def test_bytes_on_a_device():
    mesh = meshes.parse("data:2,fsdp:4")
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))  # noqa: E731
    tree = {
        "divided": jax.ShapeDtypeStruct((8, 6), "float32", sharding=place("fsdp")),
        "whole": jax.ShapeDtypeStruct((3,), "int8", sharding=place()),
    }
    assert ahead.on_device(tree) == 2 * 6 * 4 + 3


def test_every_division():
    found = list(ahead.divisions(8))
    assert len(found) == len(set(found)) and {"data:8", "fsdp:8", "fsdp:2,tensor:4"} <= set(found)
    assert all(meshes.parse(text, jax.devices()).size == 8 for text in found)


@pytest.mark.parametrize(
    "message, gibibytes",
    [
        (
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm.",
            (21.5, 15.75),
        ),
        ("the total memory required for HLO temporaries (1.25T) exceeds available HBM (95.75G).", (1280, 95.75)),
        ("the total memory required for HLO temporaries (512M) exceeds available HBM (1.00M).", (0.5, 2**-10)),
        ("Mosaic failed to compile TPU kernel", None),
    ],
)
def test_what_a_refusal_says(message, gibibytes):
    found = ahead.needed(message)
    assert found is None if gibibytes is None else found == tuple(size * 2**30 for size in gibibytes)


def analysis(flops=1e12, moved=1e9, sent=0.0, total=2**30, available=2**31, **fields):
    chip = topologies.Chip(flops=1e12, single=5e11, memory=2**31, bandwidth=1e9, network=1e9, source="nowhere")
    machine = topologies.Topology("v5p:2x2x1", chip, [None] * 4, "a compiler")
    memory = ahead.Memory(1, 2, 3, 4, 5, 6, total, available)
    spent = cost.Cost(flops, moved, Counter(), Counter(), Counter({"all-reduce": sent}))
    values = {"mesh": {"data": 4, "fsdp": 1}, "seconds": 1.0, "batch": 8, "model_flops": 2e12, "peak": 1e12}
    return ahead.Analysis(**{"topology": machine, "memory": memory, "cost": spent, **values, **fields})


@pytest.mark.parametrize("limit, step", [({}, 1.0), ({"moved": 4e9}, 4.0), ({"sent": 8e9}, 8.0)])
def test_the_slowest_limits(limit, step):
    a = analysis(**limit)
    assert a.step == step and a.mfu == pytest.approx(2e12 / (step * 1e12 * 4))


def test_it_fits():
    assert analysis().fits and not analysis(total=2**31 + 1).fits and not analysis(cost=None).fits


def test_what_the_compiler_keeps_for_itself():
    """A program that it refuses does not fit, though the chip had room for it."""
    refused = analysis(cost=None, total=2**31 - 2**24, available=2**31 - 2**25)
    for said in (command.describe(refused), command.line(refused), command.ranking([refused])):
        assert "does not fit" in said and " fits, " not in said
    assert "of 2.0 GiB: does not fit, 16.0 MiB are missing" in command.describe(refused)
    assert "of 2.0 GiB: fits, 1.0 GiB are left" in command.describe(analysis())


@pytest.mark.parametrize("precision, peak", [("float32", 5e11), ("bfloat16", 1e12)])
def test_the_peak_is_that_of_the_precision(precision, peak):
    machine = analysis().topology._replace(devices=jax.devices()[:1])
    e = build("digits_mlp", precision=precision)
    assert ahead.analyse(e, machine, 1.0, activations=False).peak == peak


KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "NVIDIA H200": "h200"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_chip_that_a_kind_of_device_is(kind):
    assert topologies.of_kind(kind) is topologies.CHIPS[KINDS[kind]]


@pytest.mark.parametrize("data, said", [(4, "data:4 of 4 devices; "), (2, "data:2 of 2 devices (2 are idle); ")])
def test_devices_that_a_mesh_leaves_out(data, said):
    assert said in command.describe(analysis(mesh={"data": data, "fsdp": 1}))


@pytest.mark.parametrize(
    "text, message",
    [
        ("v9:2", "unknown chip 'v9'"),
        ("v5e", "not of the form CHIP:SIZE"),
        ("v5e:0x1", "not of the form CHIP:SIZE"),
        ("h200:1x1x1", "h200:GPUS or h200:NODESxGPUS"),
        ("v6e:2x2x2", "a v6e has 2 axes"),
    ],
)
def test_a_topology_that_there_is_not(monkeypatch, text, message):
    from kernels.chips import gpu, tpu

    monkeypatch.setattr(tpu, "find_libtpu", lambda: "")
    monkeypatch.setattr(gpu, "missing", lambda: None)
    with pytest.raises(UserError, match=message):
        topologies.load(text)


@pytest.mark.parametrize("text", ["v5p:2x2x1", "h200:1"])
def test_a_compiler_that_is_not_installed(monkeypatch, text):
    from kernels.chips import gpu, tpu

    monkeypatch.setattr(tpu, "find_libtpu", lambda: None)
    monkeypatch.setattr(gpu, "missing", lambda: "no CUDA plugin of JAX")
    with pytest.raises(UserError, match="make chips"):
        topologies.load(text)
