"""measure examples a second against PyTorch and plain Flax, and the time to start

    python -m deeplearn benchmark [--cases=mnist_cnn_64,lstm] [--rounds=5] [--seconds=2] [--output=FILE.json]

Trains on this machine's CPU, in float32, the contenders taking turns; nothing else should run meanwhile.
PyTorch takes part where it is installed. The case `startup` is the time to the help and to the first step,
compilation and memory; the case `sweep` is 64 runs as one sweep, as 64 processes and as a Python loop; the case
`meshes` is what dividing a step over several devices takes, and what they send each other. The case `gpt2`, only where
it is asked for, is GPT-2's training on a GPU or TPU.
"""

import sys
from pathlib import Path

from absl import flags

CASES = flags.DEFINE_string("cases", "", "their names, separated by commas; empty: all of them")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each contender has its turn", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 2.0, "how long a turn is, about", lower_bound=0.001)
OUTPUT = flags.DEFINE_string("output", None, "a file for all figures, as JSON")


def show(line: str) -> None:
    """One line that the next one covers; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main() -> None:
    from deeplearn import files, strict_json
    from deeplearn.benchmark import cases, gpt2, machine, meshes, report, startup, sweeps, timing

    everywhere = [*cases.CASES, "startup", "sweep", "meshes"]
    names = cases.select(CASES.value, [*everywhere, "gpt2"]) if CASES.value else everywhere
    accelerated = gpt2.implementations() if "gpt2" in names else ()
    output = OUTPUT.value and Path(OUTPUT.value)
    described = {"machine": machine.describe(), "rounds": ROUNDS.value, "seconds": SECONDS.value}
    if output:
        with files.writing(output):
            output.touch()  # a mistake in the path shows before anything is measured
    if described["machine"]["load"] > 1:
        load = f"load {described['machine']['load']:.1f}"
        print(f"warning: this machine is busy ({load}), which slows PyTorch more than JAX", file=sys.stderr)
    results = {}
    for name in names:
        if name in cases.CASES:
            results[name] = timing.measure(name, ROUNDS.value, SECONDS.value, progress=show)
    started = startup.measure(show) if "startup" in names else {}
    swept = {name: sweeps.measure(name, show) for name in sweeps.WORKLOADS} if "sweep" in names else {}
    divided = meshes.measure(ROUNDS.value, SECONDS.value, show) if "meshes" in names else {}
    scaled = gpt2.measure(accelerated, ROUNDS.value, SECONDS.value, show)
    show("")
    blocks = [report.machine_line(described["machine"])]
    blocks += [report.markdown(results), report.verdicts(results)] if results else []
    blocks += [report.startup_markdown(started)] if started else []
    blocks += [report.sweeps_markdown(swept)] if swept else []
    blocks += [report.meshes_markdown(divided)] if divided else []
    blocks += [report.gpt2_markdown(scaled)] if scaled else []
    print("\n\n".join(filter(None, blocks)))
    if output:
        content = {**described, **report.as_json(results), "startup": started}
        for name, found in (("sweep", swept), ("meshes", divided), ("gpt2", scaled)):
            content[name] = {each: f if isinstance(f, str) else f._asdict() for each, f in found.items()}
        with files.replacing(output) as temporary:
            temporary.write_text(strict_json.dumps(content, indent=2) + "\n")
