"""compare optimizers on an experiment: every learning rate and seed of one in one program

    python -m deeplearn compare --config=FILE --optimizers=sgd,momentum,adam --seeds=5 --workdir=DIR
    python -m deeplearn compare --config=FILE --optimizers=adam,lion --points=16 --workdir=DIR
    python -m deeplearn compare --workloads=digits_mlp,sequence_rnn --workdir=DIR

Tunes on validation, runs each optimizer's best point again with fresh seeds, and evaluates those on test. Writes
curves.png, learning_rates.png, table.md, table.csv and curves.csv to DIR, and keeps every finished run in DIR/runs: the
same command goes on where it was stopped, and more optimizers, points or seeds train only what is not there yet. Of
several workloads each has a directory of its own in DIR, and together they have summary.md and profiles.png.
"""

import time
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment's file; --config.FIELD=VALUE sets a field")
WORKLOADS = flags.DEFINE_list("workloads", [], "in place of --config: several experiments, each with its own config")
WORKDIR = flags.DEFINE_string("workdir", None, "where the tables and pictures go")
OPTIMIZERS = flags.DEFINE_string(
    "optimizers",
    "minibatch_sgd,momentum,nesterov,rmsprop,adam,adamw,lion,muon",
    "their names, each with settings if need be: adam,adamw(b1=0.8,weight_decay=0.1)",
)
LEARNING_RATES = flags.DEFINE_string(
    "learning_rates", "8", "how many, evenly apart in log over each optimizer's search space; or the rates: 0.1,0.01"
)
POINTS = flags.DEFINE_integer(
    "points",
    None,
    "in place of learning rates: so many quasi-random points over all hyperparameters of each optimizer's search space",
    lower_bound=1,
)
SEEDS = flags.DEFINE_integer("seeds", 3, "how many to tune with, from config.seed on", lower_bound=1)
RERUNS = flags.DEFINE_integer(
    "reruns", 5, "how many fresh seeds the best point is run again with, and evaluated on test; 0: none", lower_bound=0
)
flags.mark_flag_as_required("workdir")


def search(name: str, seed: int) -> list[dict[str, float]]:
    """The points that the flags mean for the optimizer `name`; quasi-random ones are scrambled by the seed."""
    from deeplearn.comparison import points
    from deeplearn.errors import UserError

    if POINTS.value:
        return points.halton(name, POINTS.value, seed)
    text = LEARNING_RATES.value
    try:
        if text.isdecimal() and int(text) > 0:
            return points.grid(name, int(text))
        values = [float(part) for part in text.split(",")]
        if min(values) > 0:
            return points.rates(name, values)
    except ValueError:
        pass
    raise UserError(f"--learning_rates={text} is neither a number of rates nor a list of rates above 0") from None


def workloads() -> list[tuple[str, Any, Path]]:
    """The experiment file, config and directory of each workload."""
    from deeplearn import experiment
    from deeplearn.commands import runs
    from deeplearn.errors import UserError

    if bool(WORKLOADS.value) == bool(CONFIG.value):
        raise UserError("give either --config=FILE or --workloads=NAME,NAME")
    if CONFIG.value:
        return [(runs.config_path(), CONFIG.value, Path(WORKDIR.value))]
    files = [experiment.find(name) for name in WORKLOADS.value]
    return [(str(file), experiment.load(str(file)).get_config(), Path(WORKDIR.value) / file.stem) for file in files]


def compare(path: str, config, workdir: Path, names: list[str]):
    """All optimizers on one workload: the Workload for a summary, and the Work done."""
    from deeplearn.commands import runs
    from deeplearn.comparison import protocol, report, summary
    from deeplearn.training import manifest

    points = {name: search(name, config.seed) for name in names}
    seeds = range(config.seed, config.seed + SEEDS.value)
    manifest.check_same(workdir, config.to_dict())
    results, done, together = [], [], None
    with manifest.lock(runs.make_workdir(workdir)):
        manifest.write(workdir, config.to_dict(), path, runs.command())
        for name in names:
            chosen = config.copy_and_resolve_references()
            chosen.optimizer = name
            experiment = runs.build(path, chosen)
            progress = runs.progress(f"{name:14}")
            result, works = protocol.run(
                workdir / "runs", name, experiment, points[name], seeds, RERUNS.value, progress, together
            )
            for work in works:
                print(
                    f"\r{name:14} {work.runs} runs of {result.tuned.steps[-1]} steps in {work.seconds:.1f} s, after"
                    f" {work.compile_seconds:.1f} s of compilation; {work.plan}",
                    flush=True,
                )
                together = work.plan.together  # what was faster for the first optimizer is for the others
            if not works:
                print(f"{name:14} all {len(points[name]) * len(seeds) + RERUNS.value} runs are there already")
            results.append(result)
            done += works
        goal, metric = protocol.goal_of(experiment)
        what = f"{len(points[names[0]])} {'points' if POINTS.value else 'learning rates'}"
        title = f"{Path(path).stem}: {len(names)} optimizers x {what} x {len(seeds)} seeds"
        paths = report.write(workdir, title, results, goal, metric)
    print(f"\n{(workdir / 'table.md').read_text()}")
    return summary.Workload(Path(path).stem, results, goal, metric), done, paths


def main() -> None:
    start = time.perf_counter()
    from deeplearn import optimizers
    from deeplearn.commands import runs
    from deeplearn.comparison import summary

    runs.prepare_jax()
    names = optimizers.split_list(OPTIMIZERS.value)
    chosen = workloads()
    for name in names:
        search(name, 0)  # every mistake shows before anything runs
    found, works, paths = zip(*(compare(*workload, names) for workload in chosen), strict=True)
    paths = [path for each in paths for path in each]
    if len(chosen) > 1:
        paths = summary.write(Path(WORKDIR.value), list(found)) + paths
        print((Path(WORKDIR.value) / "summary.md").read_text())
    compiling, training = (
        sum(getattr(w, key) for each in works for w in each) for key in ("compile_seconds", "seconds")
    )
    print(f"{time.perf_counter() - start:.0f} s: {training:.0f} s of training, {compiling:.0f} s of compilation")
    print("the pictures and tables:", *paths, sep="\n  ")
