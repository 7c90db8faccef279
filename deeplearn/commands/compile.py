"""compile an experiment's train step for devices that are not here: whether it fits, and how fast it can be

    python -m deeplearn compile --config=experiments/gpt3.py --config.size=175b --config.accumulate=96 \\
        --topology=v5p:4x4x8 --config.mesh=fsdp:16,tensor:8 [--sweep_meshes]

A topology is v4, v5e, v5p, v6e or TPU7x with its chips along each axis (v5e:4x4), or h200 with the GPUs of a node, or
nodes and the GPUs of each (h200:8, h200:2x8). No device is needed and no data, but the compilers: make chips.
"""

import sys

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment's file; --config.FIELD=VALUE sets a field")
TOPOLOGY = flags.DEFINE_string("topology", None, "the machine, as v5p:4x4x8, v5e:1x1 or h200:8")
SWEEP_MESHES = flags.DEFINE_bool("sweep_meshes", False, "try every division of its devices, and rank them")
flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
    import jax
    from ml_collections import ConfigDict

    from deeplearn.commands import runs
    from deeplearn.data import blank
    from deeplearn.errors import UserError
    from deeplearn.parallel import ahead, topologies

    jax.config.update("jax_platforms", "cpu")  # whatever this machine has: the devices are the topology's
    path, config = runs.config_path(), CONFIG.value
    topology = topologies.load(TOPOLOGY.value)  # before JAX looks for its plugins, as it does once

    def build(**fields):
        changed = ConfigDict(config)
        changed.update({name: value for name, value in fields.items() if name in config})
        with blank.instead():
            return runs.build(path, changed)

    experiment, flops = build(), ahead.model_flops(build(remat="none"))
    if not SWEEP_MESHES.value:
        print(describe(ahead.analyse(experiment, topology, flops)))
        return
    found = []
    for mesh in ahead.divisions(len(topology.devices)):
        try:
            found.append(ahead.analyse(build(mesh=mesh), topology, flops, activations=False))
            print(line(found[-1]), file=sys.stderr, flush=True)
        except UserError as error:
            print(f"{mesh}: {error}", file=sys.stderr, flush=True)
    print(ranking(found))


def describe(analysis) -> str:
    """All of an analysis."""
    from deeplearn.parallel import ahead

    a, chip, memory = analysis, analysis.topology.chip, analysis.memory
    idle = len(a.topology.devices) - a.devices
    head = f"{a.topology.name}, mesh {ahead.text(a.mesh)} of {a.devices} devices" + f" ({idle} are idle)" * (idle > 0)
    parts = {name: getattr(memory, name) for name in ("parameters", "optimizer", "data")}
    if a.cost:
        parts |= {"temporaries": memory.temporaries, "padding, program": memory.rest}
    lines = [f"{head}; compiled by {a.topology.compiler} in {a.seconds:.0f} s", "", "on a device"]
    lines += [f"  {name:18} {binary(size):>10}" for name, size in (*parts.items(), ("total", memory.total))]
    if memory.activations is not None:
        lines[-3] += f", of which activations at most {binary(memory.activations)}"
    left = f"fits, {binary(memory.available - memory.total)} are left"
    lines[-1] += f" of {binary(memory.available)}: {left if a.fits else missing(memory)}"
    if not a.fits:
        lines += ["", "less memory: --config.accumulate=N, --config.remat=full, more fsdp in the mesh"]
    if a.cost is None:
        return "\n".join(lines)
    lines += [
        "",
        f"a step of {a.batch:,} examples",
        f"  model              {decimal(a.model_flops, 'FLOP'):>10} on all devices",
        f"  compiled           {decimal(a.cost.flops, 'FLOP'):>10} on a device",
        f"  memory             {decimal(a.cost.moved, 'B'):>10} read and written by a device",
    ]
    for kind, count in sorted(a.cost.counts.items()):
        sent, payload = decimal(a.cost.sent[kind], "B"), decimal(a.cost.payload[kind], "B")
        lines.append(f"  {kind:18} {sent:>10} sent by a device, in {count:,} of together {payload}")
    if a.cost.unknown:
        lines.append(f"  {a.cost.unknown} loops with products, of unknown length, count as one turn each")
    lines += ["", "a step takes at least"]
    lines += [f"  {name:18} {decimal(seconds, 's'):>10}" for name, seconds in a.times.items()]
    peaks = (
        f"{decimal(a.peak, 'FLOP')}/s, {decimal(chip.bandwidth, 'B')}/s of memory, {decimal(chip.network, 'B')}/s sent"
    )
    return "\n".join(
        [
            *lines,
            f"so at most {a.batch / a.step:,.0f} examples a second, MFU {a.mfu:.1%}",
            f"peaks of a device: {peaks} ({chip.source})",
        ]
    )


def missing(memory) -> str:
    return f"does not fit, {binary(memory.total - memory.available)} are missing"


def line(analysis) -> str:
    """A mesh in a line."""
    from deeplearn.parallel import ahead

    a = analysis
    if not a.fits:
        return f"{ahead.text(a.mesh)}: {missing(a.memory)}"
    times = ", ".join(f"{name} {decimal(seconds, 's')}" for name, seconds in a.times.items())
    return f"{ahead.text(a.mesh)}: {times}; MFU at most {a.mfu:.1%}; {binary(a.memory.total)} a device"


def ranking(found) -> str:
    """The meshes in a table: those that fit, the fastest first, then the others, by the memory they need."""
    from deeplearn.parallel import ahead

    rows = ["| mesh | products | memory | network | MFU at most | on a device |", "|---|---:|---:|---:|---:|---:|"]
    for a in sorted(found, key=lambda a: (not a.fits, a.step if a.fits else a.memory.total)):
        cells = [decimal(seconds, "s") for seconds in a.times.values()] if a.fits else ["-"] * 3
        fits = f"{a.mfu:.1%}" if a.fits else "does not fit"
        rows.append(f"| {ahead.text(a.mesh)} | {' | '.join(cells)} | {fits} | {binary(a.memory.total)} |")
    return "\n".join(rows)


def decimal(value: float, unit: str) -> str:
    """Three digits and a prefix: 1.47 GFLOP."""
    prefixes = {21: "Z", 18: "E", 15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}
    rounded = float(f"{value:.3g}")
    exponent = next((n for n in prefixes if rounded >= 10**n), 0)
    return f"{value / 10**exponent:.3g} {prefixes[exponent]}{unit}"


def binary(size: float) -> str:
    """Bytes: 15.9 GiB."""
    for exponent, prefix in ((3, "Gi"), (2, "Mi"), (1, "Ki")):
        if size >= 1024**exponent:
            return f"{size / 1024**exponent:,.1f} {prefix}B"
    return f"{size:,.0f} B"
