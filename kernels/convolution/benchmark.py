"""What `python -m kernels.bench convolution` times: the contenders, and the layers."""

import functools
import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax

from kernels import bench
from kernels.convolution import convolution, convolution_transpose
from kernels.convolution.networks import Layer, convnext, depthwise, mobilenet, resnet18, resnet50
from kernels.pooling import average_pool, max_pool

IMAGES, STEPS, RUNS = 32, 20, 8  # on a CPU
SECONDS = 0.2  # of a turn
BATCH = 128  # on a GPU
MODES = {"call": "a call", "scan": f"in a scan of {STEPS}", "vmap": f"vmapped over {RUNS} weights"}


class Pool(NamedTuple):
    """Pooling of square images by square windows."""

    kind: str
    size: int
    channels: int
    window: int
    strides: int
    padding: str = "SAME"

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
    """The same in PyTorch, padded on both sides alike; layout: 'contiguous' or 'channels_last'.

    Of several runs one after the other, or with 'contiguous vmap' by its vmap.
    """
    import torch
    from torch.nn import functional

    layout, _, how = layout.partition(" ")
    reach = case.window - 1 if isinstance(case, Pool) else case.dilation * (case.kernel - 1)
    pad = (case.kernel - case.strides) // 2 if getattr(case, "transposed", False) else reach // 2
    sides = {"stride": case.strides, "padding": pad}

    def function(*given):
        if isinstance(case, Pool):
            return (functional.max_pool2d if case.kind == "max" else functional.avg_pool2d)(
                *given, case.window, **sides
            )
        if case.transposed:
            return functional.conv_transpose2d(*given, **sides)
        return functional.conv2d(*given, dilation=case.dilation, groups=case.groups, **sides)

    def make():
        images, size, _, channels = shapes(case)[0]
        made = [torch.randn(images, channels, size, size)]
        if not isinstance(case, Pool):
            outer, inner = case.features, case.channels // case.groups
            kernel = torch.randn(*((inner, outer) if case.transposed else (outer, inner)), case.kernel, case.kernel)
            made.append(kernel / math.sqrt(inner * case.kernel**2))
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return [x.to(memory_format=form).requires_grad_() for x in made]

    runs = [make() for _ in range(RUNS if mode == "vmap" else 1)]

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
        stacked = [torch.stack([x.detach() for x in each]) for each in zip(*runs, strict=True)]

        def one(*given):
            y, pull = torch.func.vjp(function, *given)
            return pull(y)

        return lambda: torch.func.vmap(one)(*stacked)
    return (lambda: steps(runs[0])) if mode == "scan" else lambda: [gradients(given) for given in runs]


def contenders(case: Layer | Pool, mode: str) -> dict[str, Callable]:
    """What to time, by name."""
    found = {"xla": functools.partial(ours, case, mode), "Flax": functools.partial(plain, case, mode)}
    if importlib.util.find_spec("torch"):
        for layout in ("contiguous", "channels_last", *["contiguous vmap"] * (mode == "vmap")):
            found[f"PyTorch {layout}"] = functools.partial(pytorch, case, mode, layout)
    return found


def on_cpu() -> list[dict]:
    """Forward and backward, against PyTorch in both layouts and plain Flax; prints the rows and what they come to."""
    rows = []
    with bench.processes(contenders(CASES["others"][0], "vmap"), SECONDS) as measure:
        for network, cases in CASES.items():
            for case in cases:
                for mode in MODES:
                    seconds = {name: taken for name, (taken, _) in measure(contenders(case, mode)).items()}
                    row = {"network": network, "name": str(case), "layer": case._asdict(), "mode": mode}
                    rows.append({**row, "seconds": seconds})
                    each = ", ".join(f"{name} {1e3 * taken:.2f}" for name, taken in seconds.items())
                    print(f"{network} {case}, {MODES[mode]}, ms: {each}", flush=True)
    print(table(rows))
    return rows


def on_gpu() -> list[dict]:
    """Layers as their networks have them, forward, and forward with backward; prints milliseconds, returns the rows."""
    layers = [("ResNet-50", layer, more) for layer in resnet50() for more in ((), ("residual",))]
    layers += [("ConvNeXt", layer, ()) for layer in convnext()]
    layers += [("MobileNet", layer, ()) for layer in mobilenet() if layer.groups > 1]
    layers += [("dilated", depthwise(56, 128, dilation=d), ()) for d in (2, 4)]
    layers += [("pooling", Pool("max", 112, 64, 3, 2), ()), ("pooling", Pool("max", 56, 128, 2, 2), ())]
    rows = []
    for network, case, more in layers:
        row = {"network": network, "name": str(case), "layer": case._asdict(), "mode": "call", "features": [*more]}
        for title, backward in (("forward", False), ("seconds", True)):
            make = {name: functools.partial(on_device, case, name, more, backward) for name in GPU_NAMES[type(case)]}
            found = bench.in_turns(make)
            row[title] = {name: taken for name, taken in found.items() if not isinstance(taken, str)}
            row[f"{title} failed"] = {name: taken for name, taken in found.items() if isinstance(taken, str)}
        rows.append(row)
        each = (f"{name} {1e3 * row['forward'][name]:.3f} {1e3 * taken:.3f}" for name, taken in row["seconds"].items())
        print(f"{network} {case} {' '.join(more)}, forward and with backward, ms: {', '.join(each)}", flush=True)
        print(*row["seconds failed"].items(), sep="\n", end="\n" * bool(row["seconds failed"]))
    return rows


GPU_NAMES = {Layer: ("hopper", "lax"), Pool: ("hopper", "xla", "reduce_window")}


def on_device(case: Layer | Pool, name: str, more: tuple, backward: bool) -> Callable[[], None]:
    """A layer with bias and relu, and a residual if so, or a pooling; 'lax' and 'reduce_window' as anyone writes it."""
    import jax.numpy as jnp
    from flax import linen as nn

    images, *kernel = [(BATCH, *shape[1:]) if not i else shape for i, shape in enumerate(shapes(case))]
    given = arrays(images, *kernel)
    if isinstance(case, Pool):
        sides = (case.window, case.window), (case.strides, case.strides), case.padding
        plain = lambda x: nn.max_pool(x, *sides)  # noqa: E731
        ours = lambda x: max_pool(x, case.window, case.strides, case.padding, name)  # noqa: E731
        function = plain if name == "reduce_window" else ours
    else:
        given += arrays((case.features,))
        options = case.options | {"implementation": name, "activation": "relu"}
        given += arrays(jax.eval_shape(functools.partial(convolution, **case.options), *given).shape) if more else []
        function = lambda x, w, bias, residual=None: convolution(x, w, bias, residual=residual, **options)  # noqa: E731
    given = [x.astype(jnp.bfloat16) for x in given]

    def gradients(*given):
        y, pull = jax.vjp(function, *given)
        return pull(y)

    run = jax.jit(gradients if backward else function).lower(*given).compile()
    return lambda: jax.block_until_ready(run(*given))


KINDS = {  # of layers, the first whose words are all in the layer's
    "max pooling": ["max"],
    "average pooling": ["average"],
    "transposed 4x4": ["transposed"],
    "depthwise 3x3": ["depthwise"],
    "1x1": ["1×1"],
    "3x3, stride 2": ["3×3", "/2"],
    "3x3": ["3×3"],
}


def table(rows: list[dict]) -> str:
    """Times as fast as PyTorch in its better layout, and as Flax: geometric means by kind of layer, and the least."""
    lines = ["| over PyTorch, over Flax |" + "".join(f" {title} |" for title in MODES.values()), "|---|" + "---:|" * 3]
    kind_of = lambda row: next(kind for kind, words in KINDS.items() if all(word in row["name"] for word in words))  # noqa: E731
    for kind in [*KINDS, "all", "the least"]:
        cells = []
        for mode in MODES:
            chosen = [row for row in rows if row["mode"] == mode and (kind not in KINDS or kind_of(row) == kind)]
            mean = min if kind == "the least" else statistics.geometric_mean
            ratios = [_ratios(row["seconds"]) for row in chosen]
            cells.append(
                ", ".join(f"{mean(r):.2f}" if None not in r else "not measured" for r in zip(*ratios, strict=True))
            )
        lines.append(f"| {kind} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join(lines)


def _ratios(seconds):
    """PyTorch's best over ours, and Flax's over ours."""
    theirs = [taken for name, taken in seconds.items() if name.startswith("PyTorch")]
    return (min(theirs) / seconds["xla"] if theirs else None), seconds["Flax"] / seconds["xla"]
