"""Machines that are not here, for their compilers: TPU slices, nodes of H200s, and the peaks of their chips."""

import math
import os
import re
import sys
from typing import NamedTuple

import jax

from deeplearn.errors import UserError, unknown

GIB = 2**30


class Chip(NamedTuple):
    """The peaks of one device, as JAX counts them, in units a second and in bytes.

    Fields:
      flops: of products of bfloat16 matrices with float32 sums.
      single: of float32 matrices, as JAX multiplies them by default: rounded to bfloat16 on a TPU, to TF32 on a GPU.
      memory, bandwidth: the device's own.
      network: bytes that it sends to its neighbours, over all its links; it receives as many at once.
      source: where the figures are published.
      options: what libtpu calls the chip's configuration in which devices are as Cloud TPU has them.
    """

    flops: float
    single: float
    memory: float
    bandwidth: float
    network: float
    source: str
    options: dict = {}


_V4 = "docs.cloud.google.com/tpu/docs/v4; six links of 50 GB/s: Jouppi et al. 2023, TPU v4"
_TPU7X = "docs.cloud.google.com/tpu/docs/tpu7x"
CHIPS = {
    "v4": Chip(275e12, 275e12, 32 * GIB, 1200e9, 300e9, _V4, {"chip_config_name": "megacore"}),
    "v5e": Chip(197e12, 197e12, 16 * GIB, 819e9, 200e9, "docs.cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(459e12, 459e12, 95 * GIB, 2765e9, 600e9, _TPU7X),
    "v6e": Chip(918e12, 918e12, 32 * GIB, 1638e9, 400e9, _TPU7X),
    "TPU7x": Chip(2307e12 / 2, 2307e12 / 2, 96 * GIB, 7380e9 / 2, 600e9 / 2, _TPU7X),  # a chip is two devices
    "h200": Chip(989e12, 494.5e12, 141e9, 4800e9, 450e9, "nvidia.com/en-us/data-center/h200, without sparsity"),
}


# What JAX calls a device of each.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "TPU7x",
    "NVIDIA H200": "h200",
}


def of_kind(kind: str) -> Chip | None:
    """The chip that JAX calls so, None if its peaks are not known here.

    >>> of_kind("TPU v5 lite").flops
    197000000000000.0
    """
    return CHIPS[KINDS[kind]] if kind in KINDS else None


class Topology(NamedTuple):
    """A machine by name, such as `v5p:4x4x8`: its devices, with which programs can be compiled, and their peaks."""

    name: str
    chip: Chip
    devices: list
    compiler: str


def load(text: str) -> Topology:
    """The topology that `v5p:4x4x8` (chips along each axis), `h200:8` or `h200:2x8` (nodes, GPUs of each) names.

    It needs the compiler for it, see `kernels.chips`, and is to be called before anything else needs libtpu.

    Raises UserError for a chip or a shape that there is not, and for a compiler that is not installed.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise unknown("chip", name, CHIPS)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise UserError(f"topology {text!r} is not of the form CHIP:SIZE, as v5p:2x2x1, v5e:4x4 or h200:8")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # the plugins say that there is no such device
    return _h200(text, shape) if name == "h200" else _tpu(text, name, shape)


def _tpu(text, name, shape):
    from jax.experimental import topologies

    from kernels.chips import tpu

    folder = tpu.find_libtpu()
    if folder is None:
        raise UserError(
            "libtpu, which compiles for TPUs, is not installed: `make chips` does it, or pip install libtpu"
        )
    if folder and folder not in sys.path:
        sys.path.append(folder)
    # libtpu is to ask no metadata server what machine this is, and to leave alone whoever else has loaded it.
    known = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    os.environ.update({key: value for key, value in known.items() if key not in os.environ})
    axes = 2 if name in ("v5e", "v6e") else 3
    sizes = (*map(int, shape.split("x")), *(1,) * axes)[:axes]
    if len(shape.split("x")) > axes:
        raise UserError(f"topology {text!r}: a {name} has {axes} axes, as in {name}:{'x'.join('222'[:axes])}")
    options = dict(CHIPS[name].options)
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(f"{name}:{'x'.join(map(str, sizes))}", "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        if "not divisible" not in str(error):
            raise
        raise UserError(
            f"topology {text!r}: a host has 2x2 chips, of which a slice has whole ones, or a single chip"
        ) from None
    import libtpu

    return Topology(text, CHIPS[name], devices, f"libtpu {libtpu.__version__}")


def _h200(text, shape):
    from jax.experimental import topologies

    from kernels.chips import gpu

    if reason := gpu.missing():
        raise UserError(f"{reason}, to compile for an H200: `make chips` installs the plugin, CUDA's toolkit has ptxas")
    folder = os.path.join(sys.prefix, "chips")
    if os.path.isdir(folder) and folder not in sys.path:
        sys.path.append(folder)
    sizes = shape.split("x")
    if len(sizes) > 2:
        raise UserError(f"topology {text!r}: h200:GPUS or h200:NODESxGPUS")
    nodes, devices = (["1", *sizes])[-2:]
    found = topologies.get_topology_desc("", "cuda", target_config=gpu.TARGET, topology=f"1x{nodes}x{devices}")
    return Topology(text, CHIPS["h200"], found.devices, gpu.versions())
