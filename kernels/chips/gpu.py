"""Kernels compiled for an NVIDIA H200 with no GPU: whether they compile, their registers, spills and shared memory.

`python -m kernels.chips.gpu attention` compiles all cases, each in its process, and prints them as JSON; with
`--record` it adds that to `kernels/results`, which the tests compare with. It needs JAX's CUDA plugin, installed or
in the folder `chips` of the environment, and ptxas.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent import futures
from importlib import metadata, util
from pathlib import Path

CHIP, CORES = "NVIDIA H200", 132
SHARED = 232_448  # bytes of shared memory that a block may have
RESULTS = Path(__file__).parents[1] / "results"

# XLA's GpuTargetConfigProto.
TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: {CORES} fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150754820096 shared_memory_per_block_optin: {SHARED}
  cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{CHIP}"
"""

BATCH, LENGTH, HEADS, GROUPS = 2, 4096, 16, 4
ODD = 1001, 777
EVERYTHING = {
    "is_causal": True,
    "local_window_size": 1024,
    "query_seq_lengths": ("int32", (BATCH,)),
    "key_value_seq_lengths": ("int32", (BATCH,)),
    "segment_ids": ("int32", (BATCH, LENGTH)),
    "mask": ("bool", (BATCH, HEADS, LENGTH, LENGTH)),
    "logits_soft_cap": 20.0,
    "bias": ("bfloat16", (1, HEADS, LENGTH, LENGTH)),
    "dropout_rate": 0.1,
}
# Arguments of attention, (dtype, shape) for an array, and what differs from bfloat16, heads of 128 and LENGTH.
ATTENTION = {
    **{
        f"{dtype} {depth}{' causal' * causal}": {"dtype": dtype, "depth": depth, "is_causal": causal}
        for dtype in ("bfloat16", "float32")
        for depth in (64, 128, 256)
        for causal in (False, True)
    },
    "float16": {"dtype": "float16"},
    "depth 32": {"depth": 32},
    "depth 200": {"depth": 200},
    "depth 200 in float32": {"depth": 200, "dtype": "float32"},
    "odd lengths": {"length": ODD[0], "span": ODD[1], "is_causal": True},
    "window": {"is_causal": True, "local_window_size": 1024},
    "lengths": {"query_seq_lengths": ("int32", (BATCH,)), "key_value_seq_lengths": ("int32", (BATCH,))},
    "segments": {"segment_ids": ("int32", (BATCH, LENGTH)), "is_causal": True},
    "mask": {"mask": ("bool", (BATCH, 1, LENGTH, LENGTH))},
    "bias": {"bias": ("bfloat16", (1, HEADS, LENGTH, LENGTH))},
    "bias of heads": {"bias": ("float32", (HEADS, 1, 1))},
    "bias of keys": {"bias": ("float32", (BATCH, 1, 1, LENGTH))},
    "soft cap": {"logits_soft_cap": 20.0},
    "dropout": {"dropout_rate": 0.1},
    "odd lengths, segments, mask, bias": {
        "length": ODD[0],
        "span": ODD[1],
        "segment_ids": ("int32", (BATCH, ODD[0])),
        "key_value_segment_ids": ("int32", (BATCH, ODD[1])),
        "mask": ("bool", (BATCH, HEADS, *ODD)),
        "bias": ("bfloat16", (1, HEADS, *ODD)),
    },
    "everything": EVERYTHING,
    "everything 64": EVERYTHING | {"depth": 64},
}
RESNET = {  # ResNet-50 on batches of 32: (size, channels, features, kernel, strides)
    "first 7x7": (224, 3, 64, 7, 2),
    "3x3": (56, 64, 64, 3, 1),
    "3x3 of 14": (14, 256, 256, 3, 1),
    "3x3 of 7": (7, 512, 512, 3, 1),
    "3x3 stride 2": (56, 128, 128, 3, 2),
    "1x1": (56, 64, 256, 1, 1),
    "1x1 shortcut": (56, 256, 512, 1, 2),
}
# Arguments of a convolution: x, w, strides and groups; what follows it; and what differs from bfloat16.
IMAGES = 32
VECTORS = "bias", "scale", "shift"
CONVOLUTION = {
    **{
        f"ResNet-50 {name}{' ' * bool(follow)}{follow}{' in float32' * (dtype == 'float32')}": {
            "x": (IMAGES, size, size, channels),
            "w": (kernel, kernel, channels, features),
            "strides": strides,
            "follow": follow,
            "dtype": dtype,
        }
        for name, (size, channels, features, kernel, strides) in RESNET.items()
        for follow, dtype in (
            ("bias relu", "bfloat16"),
            *(
                [("bias scale shift residual gelu", "bfloat16"), ("", "float32")]
                if name in ("3x3 of 14", "1x1")
                else []
            ),
        )
    },
    "groups": {"x": (IMAGES, 28, 28, 256), "w": (3, 3, 128, 256), "groups": 2},
    "dilation": {"x": (IMAGES, 28, 28, 128), "w": (3, 3, 128, 128), "dilation": 2},
    **{
        f"depthwise {name}": {"x": (IMAGES, *size, channels), "w": (*kernel, 1, channels), "groups": channels, **more}
        for name, size, channels, kernel, more in (
            ("3x3", (56, 56), 128, (3, 3), {"follow": "bias relu"}),
            ("3x3 stride 2", (56, 56), 128, (3, 3), {"strides": 2}),
            ("3x3 dilation 2", (56, 56), 128, (3, 3), {"dilation": 2}),
            ("7x7", (56, 56), 96, (7, 7), {"follow": "bias scale shift residual gelu"}),
            ("7x7 in float32", (28, 28), 192, (7, 7), {"dtype": "float32"}),
        )
    },
}
POOLING = {
    f"{kind} {window}x{window} stride {strides}{' in float32' * (dtype == 'float32')}": {
        "kind": kind,
        "x": (IMAGES, size, size, 64),
        "window": window,
        "strides": strides,
        "padding": padding,
        "dtype": dtype,
    }
    for kind, size, window, strides, padding, dtype in (
        ("max", 112, 3, 2, 1, "bfloat16"),
        ("max", 112, 3, 2, 1, "float32"),
        ("max", 56, 2, 2, 0, "bfloat16"),
        ("sum", 112, 3, 2, 1, "bfloat16"),
        ("sum", 28, 7, 1, 0, "bfloat16"),
    )
}
CASES = {"attention": ATTENTION, "convolution": CONVOLUTION, "pooling": POOLING}


def missing() -> str | None:
    """What this machine lacks to compile for a GPU, None if nothing."""
    if not (_importable() or any(_folder().glob("jax_cuda*_plugin"))):
        return "no CUDA plugin of JAX, neither installed nor in " + str(_folder())
    return None if shutil.which("ptxas") else "no ptxas"


def versions() -> str:
    """Those of the plugin and of ptxas: with others, registers differ."""
    path = None if _importable() else [str(_folder())]
    found = [
        f"{known.name} {known.version}"
        for known in metadata.distributions(**({} if path is None else {"path": path}))
        if re.fullmatch(r"jax[-_]cuda\d+[-_]plugin", known.name or "")
    ]
    said = subprocess.run(["ptxas", "--version"], capture_output=True, text=True, check=True).stdout
    return ", ".join([*sorted(found), "ptxas " + re.search(r"V([\d.]+)", said)[1]])


def recorded(subject: str) -> dict:
    """What `--record` wrote: by versions, then as from `compiled`."""
    path = _record(subject)
    return json.loads(path.read_text()) if path.exists() else {}


def _record(subject):
    return RESULTS / f"{subject}_h200_compiled.json"


def compiled(subject: str) -> dict:
    """For each case its kernels, and for each of those what ptxas says of it."""
    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        cases = list(CASES[subject])
        return dict(zip(cases, pool.map(lambda case: _apart(subject, case), cases), strict=True))


def _apart(subject, case):
    """Compile one case in its own process, whose dumps are its own."""
    with tempfile.TemporaryDirectory() as folder:
        dumps = {"MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_MLIR_PASSES": "1", "MOSAIC_GPU_DUMP_TO": folder}
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), "" if _importable() else str(_folder()))))
        environment = os.environ | dumps | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "XLA_FLAGS": ""}
        command = [sys.executable, "-m", "kernels.chips.gpu", subject, "--case", case]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        if done.returncode:
            raise RuntimeError(f"{subject} {case} does not compile:\n{done.stderr[-3000:]}")
        return _report(Path(folder))


def _report(folder):
    """{kernel: its registers, bytes spilt, and bytes of shared memory} from the dumps of Mosaic.

    Of several kernels of a name, which come in any order, the most of each.
    """
    found = {}
    for report in sorted(folder.glob("*.ptxas")):
        said, passes = report.read_text(), report.with_suffix(".mlir-passes.log").read_text()
        name = re.fullmatch(r"(.*)_\d+", report.stem)[1]
        here = {
            "registers": int(re.search(r"Used (\d+) registers", said)[1]),
            "spill_stores": int(re.search(r"(\d+) bytes spill stores", said)[1]),
            "spill_loads": int(re.search(r"(\d+) bytes spill loads", said)[1]),
            "shared": int(re.search(r"dynamic_shared_memory_size %c(\d+)_i32", passes)[1]),
            "serialized": "wgmma.mma_async instructions are serialized" in said,
        }
        found[name] = {what: max(value, found.get(name, here)[what]) for what, value in here.items()}
    return found


def _importable():
    return any(util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


def _folder():
    return Path(sys.prefix) / "chips"


def _shapes():
    """What makes a ShapeDtypeStruct of a dtype and shape on the chip."""
    import jax
    from jax.experimental import topologies

    there = topologies.get_topology_desc("", "cuda", target_config=TARGET, topology="1x1x1").devices[0]
    return lambda dtype, shape: jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.SingleDeviceSharding(there))


def _compile(function, *arrays):
    import jax

    device = jax.sharding.AbstractDevice(device_kind=CHIP, platform="gpu", num_cores=CORES)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        jax.jit(function).lower(*arrays).compile()


def _compile_attention(asked):
    """Compile attention's value and all its gradients."""
    import jax
    import jax.numpy as jnp

    from kernels.attention import attention

    asked = dict(asked)
    dtype, depth = asked.pop("dtype", "bfloat16"), asked.pop("depth", 128)
    length, span = asked.pop("length", LENGTH), asked.pop("span", LENGTH)
    shape = _shapes()
    arrays = {name: shape(*asked.pop(name)) for name, x in list(asked.items()) if isinstance(x, tuple)}
    sizes = (length, HEADS), (span, GROUPS), (span, GROUPS)
    learned = [shape(dtype, (BATCH, *size, depth)) for size in sizes]
    learned += [arrays.pop("bias")] if "bias" in arrays else []
    asked |= {"dropout_rng": jax.random.key(0)} if "dropout_rate" in asked else {}

    def loss(learned, arrays):
        out, lse = attention(*learned, **arrays, **asked, return_residual=True, implementation="hopper")
        return out.astype(jnp.float32).sum() + lse.sum()

    _compile(jax.value_and_grad(loss), learned, arrays)


def _compile_convolution(asked):
    """Compile a convolution, with what follows it, and both of its gradients."""
    from kernels.convolution import hopper
    from kernels.convolution.epilogue import Epilogue
    from kernels.convolution.windows import geometry

    x, w, dtype, follow = asked["x"], asked["w"], asked.get("dtype", "bfloat16"), asked.get("follow", "").split()
    numbers = (asked.get(name, default) for name, default in (("dilation", 1), ("groups", 1)))
    window = geometry(x[1:3], w[:2], asked.get("strides", 1), "SAME", *numbers)
    shape = _shapes()
    output = (x[0], *window.output(x[1:3], w[:2]), w[3])
    given = {name: shape(dtype, w[3:]) for name in VECTORS if name in follow}
    given |= {"residual": shape(dtype, output)} if "residual" in follow else {}
    activation = follow[-1] if follow else None

    def everything(x, w, dy, given):
        y = hopper.forward(window, x, w, Epilogue(**given, activation=activation))
        dx = hopper.input_gradient(window, dy, w, x.shape[1:3])
        return y, dx, hopper.weight_gradient(window, x, dy, w.shape[:2])

    _compile(everything, *(shape(dtype, sizes) for sizes in (x, w, output)), given)


def _compile_pooling(asked):
    """Compile a pooling and its gradient."""
    from kernels.convolution.windows import geometry
    from kernels.pooling import hopper

    shape, x, window = _shapes(), asked["x"], (asked["window"],) * 2
    over = geometry(x[1:3], window, asked["strides"], asked["padding"])

    def everything(x, dy):
        if asked["kind"] == "max":
            y = hopper.max_pool(x, window, over)
            return y, hopper.max_pool_gradient(x, y, dy, window, over)
        scale = 1 / asked["window"] ** 2
        return hopper.sum_pool(x, window, over, scale), hopper.sum_pool_gradient(dy, x.shape[1:3], window, over, scale)

    _compile(everything, shape(asked["dtype"], x), shape(asked["dtype"], (x[0], *over.output(x[1:3], window), x[3])))


COMPILE = {"attention": _compile_attention, "convolution": _compile_convolution, "pooling": _compile_pooling}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=CASES)
    parser.add_argument("--case", help="compile this one, and print nothing")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.case is not None:
        return COMPILE[options.subject](CASES[options.subject][options.case])
    if reason := missing():
        sys.exit(reason)
    found = {versions(): compiled(options.subject)}
    print(json.dumps(found, indent=1))
    if options.record:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(recorded(options.subject) | found, indent=1, sort_keys=True)
        _record(options.subject).write_text(text + "\n")


if __name__ == "__main__":
    main()
