"""What `python -m kernels.bench convolution` times: the contenders, and the layers."""

import functools
import importlib.util
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels import bench
from kernels.convolution import convolution, convolution_transpose
from kernels.convolution.networks import Layer, depthwise, mobilenet, resnet18
from kernels.pooling import average_pool, max_pool

IMAGES, STEPS, RUNS = 32, 20, 8  # on a CPU
MODES = {"call": "a call", "scan": f"in a scan of {STEPS}", "vmap": f"vmapped over {RUNS} weights"}


class Pool(NamedTuple):
    """Pooling of square images by square windows."""

    kind: str
    size: int
    channels: int
    window: int
    strides: int

    def __str__(self):
        stride = f" /{self.strides}" if self.strides != self.window else ""
        return f"{self.size}² {self.channels} {self.kind} {self.window}×{self.window}{stride}"


CASES = {
    "ResNet-18": resnet18(32),
    "MobileNet": mobilenet(64),
    "others": [
        depthwise(32, 64),
        depthwise(32, 64, dilation=2),
        Layer(16, 64, 32, 4, 2, transposed=True),
        *(Pool(kind, 32, 64, *sizes) for kind in ("max", "average") for sizes in ((2, 2), (3, 2))),
    ],
}


def arrays(*shapes: tuple) -> list[jax.Array]:
    """Random arrays, others at every call; kernels with columns of about unit length."""
    seeds = jax.random.split(jax.random.key(time.time_ns() % 2**31), len(shapes))
    scales = (1 / math.sqrt(math.prod(shape[-4:-1])) if i else 1.0 for i, shape in enumerate(shapes))
    return [scale * jax.random.normal(seed, shape) for seed, shape, scale in zip(seeds, shapes, scales, strict=True)]


def shapes(case: Layer | Pool) -> list[tuple[int, ...]]:
    """Of the images, and of the kernel if there is one."""
    return [(IMAGES, case.size, case.size, case.channels)] if isinstance(case, Pool) else list(case.shapes(IMAGES))


def ours(case: Layer | Pool, mode: str, implementation: str | None = None) -> Callable[[], None]:
    """kernels.convolution and kernels.pooling."""
    if isinstance(case, Pool):
        pool = max_pool if case.kind == "max" else average_pool
        return timed(lambda x: pool(x, case.window, case.strides, "SAME", implementation), case, mode)
    function = convolution_transpose if case.transposed else convolution
    return timed(lambda x, w: function(x, w, **case.options, implementation=implementation), case, mode)


def plain(case: Layer | Pool, mode: str) -> Callable[[], None]:
    """Plain Flax."""
    import flax.linen as nn

    if isinstance(case, Pool):
        pool = nn.max_pool if case.kind == "max" else nn.avg_pool
        sides = (case.window, case.window), (case.strides, case.strides)
        return timed(lambda x: pool(x, *sides, "SAME"), case, mode)
    sides = {"kernel_size": (case.kernel, case.kernel), "strides": case.strides, "use_bias": False}
    if case.transposed:
        layer = nn.ConvTranspose(case.features, padding=case.padding, **sides)
    else:
        more = {"kernel_dilation": case.dilation, "feature_group_count": case.groups}
        layer = nn.Conv(case.features, padding=case.padding, **sides, **more)
    return timed(lambda x, w: layer.apply({"params": {"kernel": w}}, x), case, mode)


def timed(function: Callable, case: Layer | Pool, mode: str) -> Callable[[], None]:
    """Forward and backward passes of y = function(*given), whose cotangent is y, compiled."""

    def gradients(*given):
        y, pull = jax.vjp(function, *given)
        return pull(y)

    def steps(*given):
        step = lambda given, _: ([x - 1e-6 * d for x, d in zip(given, gradients(*given), strict=True)], None)  # noqa: E731
        return lax.scan(step, list(given), length=STEPS)[0]

    run = {"call": gradients, "scan": steps, "vmap": jax.vmap(gradients)}[mode]
    given = arrays(*((RUNS, *shape) if mode == "vmap" else shape for shape in shapes(case)))
    run = jax.jit(run).lower(*given).compile()
    return lambda: jax.block_until_ready(run(*given))


def pytorch(case: Layer | Pool, mode: str, layout: str) -> Callable[[], None]:
    """The same in PyTorch; layout: 'contiguous' or 'channels_last'. Of 8 runs one after the other, or by its vmap."""
    import torch
    from torch.nn import functional

    layout, _, how = layout.partition(" ")

    def function(x, w=None):
        if isinstance(case, Pool):  # padded alike: with 'SAME', one row at the end where windows overlap
            x = (
                functional.pad(x, (0, 1, 0, 1), value=-math.inf if case.kind == "max" else 0.0)
                if case.window > 2
                else x
            )
            pool = functional.max_pool2d if case.kind == "max" else functional.avg_pool2d
            return pool(x, case.window, case.strides)
        if case.transposed:
            return functional.conv_transpose2d(x, w, stride=case.strides, padding=(case.kernel - case.strides) // 2)
        before, after = side(case)
        x = x if before == after else functional.pad(x, (before, after, before, after))
        sides = {"padding": before if before == after else 0, "dilation": case.dilation, "groups": case.groups}
        return functional.conv2d(x, w, stride=case.strides, **sides)

    def make(shape, kernel):
        n, h, w, c = shape
        shape = (n, c, h, w) if not kernel else (c, w, h, n) if case.transposed else (w, c, h, n)
        if kernel and not case.transposed:
            shape = (case.features, case.channels // case.groups, case.kernel, case.kernel)
        if kernel and case.transposed:
            shape = (case.channels, case.features, case.kernel, case.kernel)
        x = torch.randn(shape) / (math.sqrt(math.prod(shape[1:])) if kernel else 1)
        x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
        return x.requires_grad_()

    runs = [
        [make(shape, bool(i)) for i, shape in enumerate(shapes(case))] for _ in range(RUNS if mode == "vmap" else 1)
    ]

    def gradients(given):
        y = function(*given)
        return torch.autograd.grad(y, given, y.detach())

    def steps(given):
        for _ in range(STEPS):
            found = gradients(given)
            with torch.no_grad():
                for x, d in zip(given, found, strict=True):
                    x.add_(d, alpha=-1e-6)

    if how == "vmap":
        stacked = [torch.stack([run[i].detach() for run in runs]) for i in range(len(runs[0]))]

        def one(*given):
            y, pull = torch.func.vjp(function, *given)
            return pull(y)

        return lambda: torch.func.vmap(one)(*stacked)
    if mode == "scan":
        return lambda: steps(runs[0])
    return lambda: [gradients(given) for given in runs]


def side(case: Layer) -> tuple[int, int]:
    """Rows of padding before and after, of 'SAME'."""
    total = max(
        (-(-case.size // case.strides) - 1) * case.strides + case.dilation * (case.kernel - 1) + 1 - case.size, 0
    )
    return total // 2, total - total // 2
