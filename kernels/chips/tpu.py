"""Kernels compiled for TPUs that are not here: whether they fit, and the schedule that the compiler gives them.

    python -m kernels.chips.tpu attention|convolution|pooling [--only='v5e bias.*'] [--schedule [--record]]

prints JSON: of each case its memory, or why it does not compile. With --schedule it compiles those cases alone of which
schedules are kept, and prints these too; --record keeps them in `kernels/results`. It needs libtpu, installed or in the
folder `chips` of the environment (pip install --target), which compiles for any TPU and needs none.
"""

import argparse
import functools
import glob
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "TPU7x": "TPU7x:2x2x1"}
RESULTS = Path(__file__).parents[1] / "results"


def find_libtpu() -> str | None:
    """Where libtpu is: '' if it can be imported as it is, a folder to add to the path, None if there is none."""
    if importlib.util.find_spec("libtpu"):
        return ""
    folder = os.path.join(sys.prefix, "chips")
    return folder if os.path.isdir(os.path.join(folder, "libtpu")) else None


def compiled(function: Callable, arguments: Any, chip: str, spec: tuple = ()) -> Any:
    """A function of these ShapeDtypeStructs, compiled for chips of this name; nothing can run.

    spec: a PartitionSpec of all arguments, in which 'chip' divides an axis over four chips; () for a single one.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(TOPOLOGIES[chip], "tpu").devices
    # Of explicit axes where 'chip' divides examples or heads, as types then say; a ring is divided by hand.
    kind = jax.sharding.AxisType.Explicit if spec and spec[:2] != (None, "chip") else jax.sharding.AxisType.Auto
    mesh = jax.sharding.Mesh(np.array(devices[: 4 if spec else 1]), ("chip",), axis_types=(kind,))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*arguments).compile()


def schedules(folder: str, prefix: str) -> dict[str, dict]:
    """Of each Pallas kernel, named prefix_..., that libtpu dumped here: its bundles, and what fills the longest blocks.

    A block runs from one branch to the next; the longest are the work on one tile. mxu: the share of the slots of the
    matrix units that are taken; spills: stores of registers that were too few.
    """
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*-final_bundles.txt"))):
        name = re.search(rf"{prefix}_[a-z_]*[a-z]", os.path.basename(path).split("-final_bundles")[0])
        if not name or "schedule-analysis" in path:
            continue
        stem = re.sub(r"-\d+-final_bundles.txt$", "", path)
        table = Path(glob.glob(glob.escape(stem) + "-*-final_hlo-static-per-bundle-utilization.txt")[0]).read_text()
        columns, capacity = (line.split() for line in table.splitlines()[1:3])
        columns = [column.strip(",") for column in columns]
        slots = [list(map(int, line.split())) for line in table.split("UTILIZATION:\n")[1].splitlines()]
        lines = re.findall(r"^\s*0x[0-9a-f]+\s+(\w*)\s*:(.*)$", Path(path).read_text(), re.MULTILINE)
        cuts = [at for at, (label, text) in enumerate(lines) if label or "sbr.rel" in text]
        blocks = []
        for start, end in zip([0, *cuts], [*cuts, len(lines)], strict=True):
            taken = dict(zip(columns, map(sum, zip(*slots[start:end], strict=True)), strict=False))
            if "MXU" in taken and taken["MXU"]:
                mxu = taken["MXU"] / (end - start) / int(capacity[columns.index("MXU")])
                blocks.append({"bundles": end - start, "mxu": round(mxu, 3), "spills": taken["VSTORE:SPILL"]})
        blocks.sort(key=lambda block: -block["bundles"])
        found[name[0]] = {"bundles": len(lines), "blocks": blocks[:2]}
    return found


def attention_cases() -> Iterator[tuple[str, str, Callable, tuple, tuple]]:
    """Name, chip, function, shapes and how they are divided: the gradient of attention, on every chip, in every way."""
    import jax
    import jax.numpy as jnp

    from kernels.attention import attention

    def case(dtype, depth, length=2048, heads=(4, 4), bias=None, extra=None, batch=2, **asked):
        shapes = [jax.ShapeDtypeStruct((batch, length, n, depth), dtype) for n in (heads[0], heads[1], heads[1])]
        shapes += [jax.ShapeDtypeStruct(bias, dtype)] if bias else []
        extra = extra or {}

        def gradient(learned, extra):
            def loss(*learned):
                out, lse = attention(*learned, return_residual=True, implementation="tpu", **extra, **asked)
                return out.astype(jnp.float32).sum() + lse.sum()

            return jax.value_and_grad(loss, argnums=tuple(range(len(learned))))(*learned)

        return gradient, (shapes, extra), ()

    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    for chip in TOPOLOGIES:
        for dtype in ("bfloat16", "float32"):
            for depth in (64, 128, 256):
                yield f"causal {dtype} {depth}", chip, *case(dtype, depth, is_causal=True)
    segments = {"segment_ids": number(2, 2048), "key_value_segment_ids": number(2, 2048)}
    rng = {"dropout_rng": jax.eval_shape(lambda: jax.random.key(0))}
    everything = segments | rng | {"key_value_seq_lengths": number(2), "mask": jax.ShapeDtypeStruct((2048, 2048), bool)}
    for name, asked in {
        "full": {},
        "window": {"is_causal": True, "local_window_size": 300},
        "segments": {"extra": segments},
        "lengths": {"extra": {"query_seq_lengths": number(2), "key_value_seq_lengths": number(2)}},
        "mask": {"extra": {"mask": jax.ShapeDtypeStruct((2, 1, 2048, 2048), bool)}},
        "mask of keys": {"extra": {"mask": jax.ShapeDtypeStruct((2, 1, 1, 2048), bool)}},
        "bias": {"bias": (1, 4, 2048, 2048)},
        "bias of keys": {"bias": (2, 1, 1, 2048)},
        "bias of queries": {"bias": (1, 4, 2048, 1)},
        "bias of heads": {"bias": (1, 4, 1, 1)},
        "soft cap": {"logits_soft_cap": 20.0},
        "dropout": {"dropout_rate": 0.1, "extra": rng},
        "groups": {"heads": (8, 2), "is_causal": True},
        "one key head": {"heads": (4, 1)},
        "odd lengths": {"length": 1000, "is_causal": True},
        "short": {"length": 5},
        "everything": {
            "heads": (4, 2),
            "is_causal": True,
            "logits_soft_cap": 20.0,
            "bias": (1, 4, 2048, 2048),
            "dropout_rate": 0.1,
            "extra": everything,
        },
    }.items():
        yield name, "v5e", *case("bfloat16", 128, **asked)
    yield "float16", "v5e", *case("float16", 64)
    for depth in (32, 80, 96, 192):
        yield f"depth {depth}", "v5e", *case("bfloat16", depth, is_causal=True)

    from kernels.attention import ring_attention

    x = jax.ShapeDtypeStruct((1, 16384, 8, 128), jnp.bfloat16)
    along = jax.sharding.PartitionSpec(None, "chip")
    call = functools.partial(ring_attention, axis_name="chip", is_causal=True, implementation="tpu")
    divided = lambda *qkv: jax.shard_map(call, in_specs=along, out_specs=along)(*qkv)  # noqa: E731
    loss = lambda *qkv: divided(*qkv).astype(jnp.float32).sum()  # noqa: E731
    for name, spec in {"divided examples": ("chip",), "divided heads": (None, None, "chip")}.items():
        yield name, "v5e", *case("bfloat16", 128, batch=4, is_causal=True)[:2], spec
    yield "ring", "v5e", jax.grad(loss, argnums=(0, 1, 2)), (x, x, x), (None, "chip")


def window_cases(subject: str) -> Iterator[tuple[str, str, Callable, tuple, tuple]]:
    """Those of convolution or pooling."""
    from kernels.chips import tpu_windows  # which imports JAX

    return getattr(tpu_windows, subject)()


CASES = {"attention": attention_cases} | {
    subject: functools.partial(window_cases, subject) for subject in ("convolution", "pooling")
}
SCHEDULES = {  # not of pooling, which has no matrix products
    "attention": "(causal bfloat16 128|v5e causal .* (64|128)|v5e full|v5e dropout|v5e segments)$",
    "convolution": "v5e .*(64→64|128→128|256→256|512→512|64→256) .×. (/2 |depthwise )?bfloat16$",
}


def check(what: str, only: str | None, dump: str | None) -> dict:
    """Compile the cases of this name: what each says of its memory, or why it did not compile; schedules, if dumped."""
    found = {}
    for name, chip, function, arguments, spec in CASES[what]():
        case = f"{chip} {name}"
        if only and not re.search(only, case):
            continue
        start = time.time()
        try:
            program = compiled(function, arguments, chip, spec)
            gathers = len(re.findall(r" all-gather(?:-start)?\(", program.as_text()))
            found[case] = {"temporary": program.memory_analysis().temp_size_in_bytes, "gathers": gathers}
        except Exception as error:  # of every kind: a case that does not compile is what is looked for
            found[case] = {"error": f"{type(error).__name__}: {error}"}
        if dump:
            found[case]["kernels"] = schedules(dump, what)
            for path in glob.glob(os.path.join(dump, "*")):
                os.remove(path)
        print(f"{case}: {time.time() - start:.1f} s", file=sys.stderr, flush=True)
    return {"libtpu": importlib.metadata.version("libtpu"), "cases": found}


def recorded(subject: str) -> dict:
    """What `--record` wrote: by versions of libtpu, then as the cases of `check`."""
    path = _record(subject)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _record(subject):
    return RESULTS / f"{subject}_tpu_schedule.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=CASES)
    parser.add_argument("--only", help="the cases that match, as 'v5e bias.*'")
    parser.add_argument("--schedule", action="store_true", help="the schedules too, of the cases whose are kept")
    parser.add_argument("--record", action="store_true", help="keep the schedules")
    options = parser.parse_args()
    if options.record and (options.only or not options.schedule):
        parser.error("--record keeps all schedules of a compiler: give it with --schedule and without --only")
    folder = find_libtpu()
    if folder is None:
        sys.exit("libtpu is neither installed nor in the folder chips of this environment")
    sys.path[:0] = [folder] if folder else []
    os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    if options.schedule:
        with tempfile.TemporaryDirectory() as dump:  # libtpu reads where to dump when it is loaded
            os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
            found = check(options.subject, options.only or SCHEDULES[options.subject], dump)
    else:
        found = check(options.subject, options.only, None)
    print(json.dumps(found, indent=1, allow_nan=False))
    if options.record:
        RESULTS.mkdir(exist_ok=True)
        known = recorded(options.subject) | {found["libtpu"]: found["cases"]}
        text = json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        _record(options.subject).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
