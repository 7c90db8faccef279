"""From figures to ratios, goals met or missed, a Markdown table and JSON."""

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from deeplearn.benchmark import meshes, startup
from deeplearn.benchmark.cases import CASES
from deeplearn.benchmark.contender import CONTENDERS
from deeplearn.benchmark.timing import Figures

PEERS = [name for name in CONTENDERS if name != "ours"]
Results = dict[str, dict[str, Figures | str]]  # by case, then contender


class Goal(NamedTuple):
    """A ratio to reach: `statistic` over the cases' ratios of ours to `peer`."""

    peer: str
    statistic: str
    value: float
    max_pooling: bool = False  # counts only the cases that pool by the maximum


STATISTICS = {"geometric mean": statistics.geometric_mean, "least": min}
GOALS = (
    Goal("torch", "geometric mean", 1.5),
    Goal("torch", "least", 1.1),
    Goal("compiled", "geometric mean", 1.5),
    Goal("compiled", "least", 1.1),
    Goal("flax", "least", 3.0, max_pooling=True),
)


def round_ratios(case: dict[str, Figures | str], peer: str) -> list[float]:
    """Ours over the peer's, round by round; empty where the peer is missing."""
    if not isinstance(case[peer], Figures):
        return []
    return [ours / theirs for ours, theirs in zip(case["ours"].rates, case[peer].rates, strict=True)]


def ratios(results: Results, peer: str) -> dict[str, float]:
    """The median ratio to the peer in each case that has one."""
    rounds = {name: round_ratios(case, peer) for name, case in results.items()}
    return {name: statistics.median(values) for name, values in rounds.items() if values}


def geometric_means(results: Results) -> dict[str, float]:
    """Over the cases, of the median ratio to each peer that took part."""
    values = {peer: ratios(results, peer).values() for peer in PEERS}
    return {peer: statistics.geometric_mean(ratio) for peer, ratio in values.items() if ratio}


def judge(results: Results) -> list[tuple[Goal, float]]:
    """Every goal that has a figure, and the figure."""
    judged = []
    for goal in GOALS:
        values = ratios(results, goal.peer)
        counted = [value for name, value in values.items() if CASES[name].max_pooling or not goal.max_pooling]
        if counted:
            judged.append((goal, STATISTICS[goal.statistic](counted)))
    return judged


def markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(results: Results) -> str:
    """Examples a second, and ratios as median (least to greatest); the last row holds the geometric means."""
    head = ["case", CONTENDERS["ours"].title]
    for peer in PEERS:
        head += [CONTENDERS[peer].title, "ours / it"]
    lines = [markdown_row(head), markdown_row(["---"] + ["---:"] * (len(head) - 1))]
    for name, case in results.items():
        cells = [CASES[name].about, f"{case['ours'].rate:,.0f}"]
        for peer in PEERS:
            if values := round_ratios(case, peer):
                detail = f" ({case[peer].detail})" * bool(case[peer].detail)
                cells += [f"{case[peer].rate:,.0f}{detail}"]
                cells += [f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"]
            else:
                cells += [case[peer], ""]
        lines.append(markdown_row(cells))
    means, last = geometric_means(results), ["geometric mean", ""]
    for peer in PEERS:
        last += ["", f"{means[peer]:.2f}" if peer in means else ""]
    return "\n".join([*lines, markdown_row(last)])


def verdicts(results: Results) -> str:
    """A line for each goal: what was wanted, what there is."""
    lines = []
    for goal, value in judge(results):
        where = ", where it pools by the maximum" * goal.max_pooling
        wanted = f"{goal.value} x {CONTENDERS[goal.peer].title}, {goal.statistic}{where}"
        lines.append(f"{'met   ' if value >= goal.value else 'missed'} {wanted}: {value:.2f}")
    return "\n".join(lines)


def machine_line(machine: dict) -> str:
    """The machine in one line, for above a table."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    date = machine["date"].partition("T")[0]
    hardware = f"{machine['cores']} cores, {machine['processor']} (load before: {machine['load']:.1f})"
    return f"{hardware}, Python {machine['python']}, {versions}; {date}"


def startup_markdown(figures: dict[str, float]) -> str:
    """What the start takes, a row a figure.

    >>> print(startup_markdown({"help_seconds": 0.25, "peak_memory_ours_bytes": 3.5e8}))
    | start |  |
    | --- | ---: |
    | `train --help` | 0.25 s |
    | peak memory of mnist_cnn_64, ours | 350 MB |
    """
    lines = [markdown_row(["start", ""]), markdown_row(["---", "---:"])]
    for name, title in startup.FIGURES.items():
        if name in figures:
            value = figures[name]
            text = f"{value:.2f} s" if name.endswith("_seconds") else f"{value / 1e6:,.0f} MB"
            lines.append(markdown_row([title, text]))
    return "\n".join(lines)


def sweeps_markdown(figures: dict) -> str:
    """64 runs as one sweep and as others would do them; ratios with the goals they are to reach."""
    lines = [
        "| 64 runs | `compare` | 64 x `train` | faster | a sweep's compilation + runs | a Python loop's | faster |"
        " faster, runs alone | a lane more |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, f in figures.items():
        whole = (f.loop_compile + f.loop) / (f.sweep_compile + f.sweep)
        cells = [name, f"{f.command:.1f} s", f"{f.processes:.0f} s", f"{f.processes / f.command:.1f} x"]
        cells += [f"{f.sweep_compile:.1f} + {f.sweep:.1f} s", f"{f.loop_compile:.1f} + {f.loop:.1f} s"]
        cells += [f"{whole:.1f} x", f"{f.loop / f.sweep:.1f} x", f"{f.lane_bytes / 2**20:.2f} MB"]
        lines.append(markdown_row(cells))
    for what, goal, ratio in (
        ("64 processes", 20.0, lambda f: f.processes / f.command),
        ("a Python loop, compiled step shared", 2.0, lambda f: f.loop / f.sweep),
    ):
        least = min(map(ratio, figures.values()))
        lines.append(f"{'met   ' if least >= goal else 'missed'} {goal} x {what}, least: {least:.1f}")
    return "\n".join([*lines[:-2], "", *lines[-2:]])


def meshes_markdown(figures: dict) -> str:
    """What each mesh takes beside one device, and what a device of it sends.

    >>> from deeplearn.benchmark.meshes import Figures
    >>> print(meshes_markdown({"data:2": Figures(1.05, 1.12, 3.2e6, 3.1e6), "tensor:2": Figures(1.2, None, 2e6, 2e6)}))
    | mesh | time, 32 examples | time, 4 a device | sent, compiled | by the formula | ratio |
    | --- | ---: | ---: | ---: | ---: | ---: |
    | data:2 | 1.05 | 1.12 | 3.20 MB | 3.10 MB | 1.032 |
    | tensor:2 | 1.20 | - | 2.00 MB | 2.00 MB | 1.000 |
    """
    header = ["mesh", f"time, {meshes.TOGETHER} examples", f"time, {meshes.EACH} a device", "sent, compiled"]
    lines = [markdown_row([*header, "by the formula", "ratio"]), markdown_row(["---", *["---:"] * 5])]
    for mesh, f in figures.items():
        each = "-" if f.each is None else f"{f.each:.2f}"
        cells = [mesh, f"{f.together:.2f}", each, f"{f.sent / 1e6:.2f} MB", f"{f.theory / 1e6:.2f} MB"]
        lines.append(markdown_row([*cells, f"{f.sent / f.theory:.3f}"]))
    return "\n".join(lines)


def gpt2_markdown(found: dict) -> str:
    """Training of GPT-2 by each implementation of attention, and the goal for it.

    >>> from deeplearn.benchmark.gpt2 import Figures
    >>> print(gpt2_markdown({"hopper": Figures(5e5, [5e5], 0.46, 3 * 10**10), "cudnn": "not installed"}))
    | attention | tokens a second | MFU | memory |
    | --- | ---: | ---: | ---: |
    | hopper | 500,000 | 46.0 % | 30.0 GB |
    | cudnn | not installed | - | - |
    <BLANKLINE>
    missed 50 % MFU: 46.0 %
    """
    lines = [markdown_row(["attention", "tokens a second", "MFU", "memory"]), markdown_row(["---", *["---:"] * 3])]
    for name, f in found.items():
        cells = (
            [f, "-", "-"]
            if isinstance(f, str)
            else [f"{f.tokens:,.0f}", f"{f.mfu:.1%}", f"{f.peak_bytes / 1e9:.1f} GB"]
        )
        lines.append(markdown_row([name, *(cell.replace("%", " %") for cell in cells)]))
    best = max((f.mfu for f in found.values() if not isinstance(f, str)), default=0.0)
    return "\n".join([*lines, "", f"{'met   ' if best >= 0.5 else 'missed'} 50 % MFU: {100 * best:.1f} %"])


def as_json(results: Results) -> dict:
    """All of it, as what JSON can hold."""
    cases = {}
    for name, case in results.items():
        contenders, against = {}, {}
        for contender, figures in case.items():
            if isinstance(figures, Figures):
                contenders[contender] = {"examples_per_second": figures.rate, **figures._asdict()}
            else:
                contenders[contender] = {"not_available": figures}
        for peer in PEERS:
            if values := round_ratios(case, peer):
                median = statistics.median(values)
                against[peer] = {"median": median, "least": min(values), "greatest": max(values)}
        about = {"about": CASES[name].about, "batch_size": CASES[name].batch_size}
        cases[name] = {**about, "contenders": contenders, "ours_over": against}
    goals = [{**goal._asdict(), "figure": value, "met": value >= goal.value} for goal, value in judge(results)]
    return {"cases": cases, "geometric_means": geometric_means(results), "goals": goals}
