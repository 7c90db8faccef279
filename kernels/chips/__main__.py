"""Prints what pip needs to install to compile for TPUs and for CUDA, of the versions that go with this jax."""

import importlib.metadata
import re


def requirements(jax: str, extras: list[str]) -> list[str]:
    """libtpu as jax's own extra names it, and jax's two packages for the CUDA that setup.py chooses.

    >>> requirements("0.10.2", ['libtpu==0.0.42.*; extra == "tpu"'])
    ['libtpu==0.0.42.*', 'jax-cuda12-pjrt==0.10.2', 'jax-cuda12-plugin==0.10.2']
    """
    libtpu = re.findall(r"libtpu==[\d.*]+", " ".join(extras))[:1]
    cuda = 12 if jax.startswith("0.10.") else 13
    return libtpu + [f"jax-cuda{cuda}-{part}=={jax}" for part in ("pjrt", "plugin")]


if __name__ == "__main__":
    print(" ".join(requirements(importlib.metadata.version("jax"), importlib.metadata.requires("jax") or [])))
