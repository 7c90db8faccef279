"""The measured table: our kernels against XLA's and PyTorch's, contenders taking turns in one run.

    python -m kernels.bench attention

Each contender has a process of its own, so that their threads do not meet; a turn runs one of them for about half a
second, and a figure is the median over turns. Forward and backward, fresh random data in each process.
"""

import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable

BATCH, HEADS, DEPTH = 4, 8, 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TURNS, SECONDS = 5, 0.5


def attention(implementation: str, length: int) -> Callable[[], None]:
    """One forward and backward pass of causal attention in JAX, float32."""
    import jax
    import jax.numpy as jnp

    from kernels.attention import attention

    seeds = jax.random.split(jax.random.key(time.time_ns() % 2**31), 4)
    *qkv, weigh = (jax.random.normal(seed, (BATCH, length, HEADS, DEPTH), jnp.float32) for seed in seeds)

    def loss(query, key, value):
        return (attention(query, key, value, is_causal=True, implementation=implementation) * weigh).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*qkv).compile()
    return lambda: jax.block_until_ready(gradient(*qkv))


def attention_torch(length: int) -> Callable[[], None]:
    """The same in PyTorch."""
    import torch

    query, key, value = (torch.randn(BATCH, HEADS, length, DEPTH, requires_grad=True) for _ in range(3))
    weigh = torch.randn(BATCH, HEADS, length, DEPTH)

    def run():
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(out, (query, key, value), weigh)

    return run


def work(connection, name: str, length: int) -> None:
    """A process that runs a contender whenever it is told to, and sends the seconds of a call."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    run = attention_torch(length) if name == "PyTorch" else attention(name, length)
    run()
    connection.send(peak_memory())
    while connection.recv():
        times, end = [], time.perf_counter() + SECONDS
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        connection.send(statistics.median(times))


def peak_memory() -> int:
    """Bytes, of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(length: int, names: tuple[str, ...]) -> dict[str, tuple[float, int]]:
    """Median seconds and peak bytes of each contender."""
    context = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for name in names:
        pipes[name], there = context.Pipe()
        children.append(context.Process(target=work, args=(there, name, length)))
        children[-1].start()
        there.close()
    memory = {name: pipe.recv() for name, pipe in pipes.items()}
    times = {name: [] for name in names}
    for _ in range(TURNS):
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for child in children:
        child.join()
    return {name: (statistics.median(times[name]), memory[name]) for name in names}


def main(arguments: list[str]) -> int:
    if arguments != ["attention"]:
        print("usage: python -m kernels.bench attention", file=sys.stderr)
        return 2
    names = ("xla", "reference", "PyTorch") if importlib.util.find_spec("torch") else ("xla", "reference")
    print(f"causal attention, forward and backward, B{BATCH} H{HEADS} D{DEPTH}, float32, {os.cpu_count()} CPU cores")
    print("| T |" + "".join(f" {name}, ms |" for name in names) + " over the others |")
    print("|---|" + "---:|" * (len(names) + 1))
    found = {}
    for length in LENGTHS:
        found[length] = measure(length, names)
        ms = [found[length][name][0] * 1e3 for name in names]
        ratios = ", ".join(f"{other / ms[0]:.2f}" for other in ms[1:])
        print(f"| {length} |" + "".join(f" {x:.2f} |" for x in ms) + f" {ratios} |", flush=True)
    print(json.dumps({str(k): {n: {"seconds": s, "bytes": b} for n, (s, b) in v.items()} for k, v in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
