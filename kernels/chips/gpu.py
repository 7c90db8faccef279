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
    from kernels.chips import gpu_cases

    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        cases = list(gpu_cases.CASES[subject][1])
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


def main():
    from kernels.chips import gpu_cases

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=gpu_cases.CASES)
    parser.add_argument("--case", help="compile this one, and print nothing")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.case is not None:
        compile_it, cases = gpu_cases.CASES[options.subject]
        return compile_it(cases[options.case])
    if reason := missing():
        sys.exit(reason)
    found = {versions(): compiled(options.subject)}
    print(json.dumps(found, indent=1, allow_nan=False))
    if options.record:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(recorded(options.subject) | found, indent=1, sort_keys=True, allow_nan=False)
        _record(options.subject).write_text(text + "\n")


if __name__ == "__main__":
    main()
