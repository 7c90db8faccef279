"""What `python -m kernels.bench attention` times: the contenders, and the shapes."""

import functools
import importlib.util
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels import bench
from kernels.attention import attention

BATCH, HEADS, DEPTH = 4, 8, 64  # on a CPU
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TOKENS, HIDDEN = 16384, 2048  # on a GPU: B T, and N D
GPU_LENGTHS, DEPTHS = (1024, 2048, 4096, 8192, 16384), (64, 128)


def arrays(shape: tuple, dtype, count: int = 4) -> list[jax.Array]:
    """Random arrays, others at every call."""
    seeds = jax.random.split(jax.random.key(time.time_ns() % 2**31), count)
    return [jax.random.normal(seed, shape, dtype) for seed in seeds]


def gradient(attend: Callable, shape: tuple, dtype) -> Callable[[], None]:
    """One forward and backward pass of `attend(query, key, value)`, compiled."""
    *qkv, weigh = arrays(shape, dtype)

    def loss(*qkv):
        return (attend(*qkv) * weigh).astype(jnp.float32).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*qkv).compile()
    return lambda: jax.block_until_ready(run(*qkv))


def forward(attend: Callable, shape: tuple, dtype) -> Callable[[], None]:
    """One forward pass, compiled."""
    qkv = arrays(shape, dtype, 3)
    run = jax.jit(attend).lower(*qkv).compile()
    return lambda: jax.block_until_ready(run(*qkv))


def ours(name: str, length: int) -> Callable[[], None]:
    """Causal attention on a CPU, float32, by the implementation of this name."""
    attend = functools.partial(attention, is_causal=True, implementation=name)
    return gradient(attend, (BATCH, length, HEADS, DEPTH), jnp.float32)


def pytorch(length: int) -> Callable[[], None]:
    """The same in PyTorch."""
    import torch

    query, key, value = (torch.randn(BATCH, HEADS, length, DEPTH, requires_grad=True) for _ in range(3))
    weigh = torch.randn(BATCH, HEADS, length, DEPTH)

    def run():
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(out, (query, key, value), weigh)

    return run


def on_cpu() -> list[dict]:
    """Forward and backward, against the plain formula and PyTorch; prints a table and returns its rows."""
    names = ("xla", "reference", *(["PyTorch"] if importlib.util.find_spec("torch") else []))
    print(f"causal attention, forward and backward, B{BATCH} H{HEADS} D{DEPTH}, float32")
    rows = []
    for length in LENGTHS:
        make = {name: functools.partial(pytorch, length) for name in names if name == "PyTorch"}
        make |= {name: functools.partial(ours, name, length) for name in names if name != "PyTorch"}
        found = bench.in_processes({name: make[name] for name in names})
        seconds, memory = ({name: values[i] for name, values in found.items()} for i in range(2))
        rows.append({"length": length, "depth": DEPTH, "features": ["causal"], "seconds": seconds, "bytes": memory})
        print(table(rows) if length == LENGTHS[0] else table(rows).splitlines()[-1], flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """The rows of a CPU as a table: milliseconds and peak memory of each, and PyTorch's time over the chosen one's."""
    names = list(rows[0]["seconds"])
    lines = ["| T |" + "".join(f" {name} |" for name in names) + " chosen | over PyTorch |"]
    lines.append("|---|" + "---:|" * (len(names) + 2))
    for row in rows:
        seconds = row["seconds"]
        best = min((name for name in names if name != "PyTorch"), key=seconds.__getitem__)
        ratio = f"{seconds['PyTorch'] / seconds[best]:.2f}" if "PyTorch" in names else "not measured"
        cells = "".join(f" {seconds[name] * 1e3:.1f} ms, {row['bytes'][name] / 1e6:,.0f} MB |" for name in names)
        lines.append(f"| {row['length']:,} |{cells} {best} | {ratio} |")
    return "\n".join(lines)


def teraflops(shape: tuple, causal: bool) -> float:
    """1e12 floating-point operations of a forward pass, 4 B N T^2 D, half of them if it is causal."""
    batch, length, heads, depth = shape
    return 4e-12 * batch * heads * length**2 * depth * (0.5 if causal else 1)


def others(causal: bool) -> dict[str, Callable]:
    """Attention by others, as functions of query, key and value (B, T, N, D)."""
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    found = {name: functools.partial(plain, implementation=name) for name in ("cudnn", "xla")}

    def mosaic(query, key, value):
        from jax.experimental.pallas.ops.gpu import attention_mgpu

        config = attention_mgpu.TuningConfig(
            block_q=64, block_kv=128, max_concurrent_steps=2, causal=causal,
            block_q_dkv=64, block_kv_dkv=64, block_q_dq=64, block_kv_dq=64,
        )  # fmt: skip
        scale = 1 / math.sqrt(query.shape[-1])  # its scores are not divided
        return attention_mgpu.attention(query * jnp.asarray(scale, query.dtype), key, value, config)

    found["jax Mosaic GPU"] = mosaic
    if importlib.util.find_spec("tokamax"):
        import tokamax

        found["tokamax"] = functools.partial(tokamax.dot_product_attention, is_causal=causal)
    return found


def features(length: int, depth: int) -> dict[str, tuple[dict, dict]]:
    """What others need a whole mask or bias for: our arguments, and theirs."""
    index = jnp.arange(length, dtype=jnp.int32)
    segments = index[None] // (length // 4)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    apart = index[:, None] - index[None]
    window = ((apart >= 0) & (apart <= 512))[None, None]
    bias = arrays((1, HIDDEN // depth, length, length), jnp.bfloat16, 1)[0]
    batched = jnp.broadcast_to(segments, (TOKENS // length, length))
    return {
        "segments": ({"segment_ids": batched}, {"mask": same}),
        "window": ({"is_causal": True, "local_window_size": (512, 0)}, {"mask": window}),
        "soft cap": ({"logits_soft_cap": 30.0}, {}),
        "bias": ({"bias": bias}, {"bias": bias}),
    }


def capped(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Soft-capped attention as it would be written."""
    scores = jnp.einsum("bqnd,bknd->bnqk", query, key, preferred_element_type=jnp.float32) / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(30.0 * jnp.tanh(scores / 30.0), axis=-1).astype(value.dtype)
    return jnp.einsum("bnqk,bknd->bqnd", weights, value)


def on_gpu(dtype=jnp.bfloat16) -> list[dict]:
    """Forward, and forward with backward, of 16k tokens 2,048 wide; prints speeds and returns the rows."""
    mine = {name: functools.partial(attention, implementation=name) for name in ("hopper",)}
    rows = []
    for depth in DEPTHS:
        for causal in (False, True):
            for length in GPU_LENGTHS:
                shape = (TOKENS // length, length, HIDDEN // depth, depth)
                each = {name: functools.partial(attend, is_causal=causal) for name, attend in mine.items()}
                asked = ["causal"] if causal else []
                rows.append(_row(shape, dtype, each | others(causal), asked))
    length, depth = 4096, 128
    shape = (TOKENS // length, length, HIDDEN // depth, depth)
    for feature, (ours, theirs) in features(length, depth).items():
        each = {name: functools.partial(attend, **ours) for name, attend in mine.items()}
        if feature == "soft cap":
            each["xla"] = capped
        else:
            for name in ("cudnn", "xla"):
                each[name] = functools.partial(jax.nn.dot_product_attention, implementation=name, **theirs)
        asked = ["causal", "window"] if feature == "window" else [feature]
        rows.append(_row(shape, dtype, each, asked))
    return rows


def _row(shape, dtype, contenders, asked):
    work = teraflops(shape, "causal" in asked)
    row = {"length": shape[1], "depth": shape[3], "batch": shape[0], "heads": shape[2], "features": asked}
    for title, make, amount in (("forward", forward, work), ("seconds", gradient, 3.5 * work)):
        found = bench.in_turns({name: functools.partial(make, f, shape, dtype) for name, f in contenders.items()})
        row[title] = {name: taken for name, taken in found.items() if not isinstance(taken, str)}
        row[f"{title} failed"] = {name: taken for name, taken in found.items() if isinstance(taken, str)}
        what = "forward" if title == "forward" else "forward and backward"
        rates = (f"{name} {amount / taken:.0f}" for name, taken in row[title].items())
        print(f"B{shape[0]} T{shape[1]} N{shape[2]} D{shape[3]} {' '.join(asked) or 'full'}, {what}, TFLOP/s:",
              ", ".join(rates), flush=True)  # fmt: skip
    return row
