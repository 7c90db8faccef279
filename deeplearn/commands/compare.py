"""compare optimizers on an experiment: every learning rate and seed of one in one program

    python -m deeplearn compare --config=FILE --optimizers=sgd,momentum,adam --seeds=5 --workdir=DIR
    python -m deeplearn compare --config=FILE --optimizers=adam,lion --points=16 --workdir=DIR

Tunes on validation, runs each optimizer's best point again with fresh seeds, and evaluates those on test. Writes
curves.png, learning_rates.png, table.md, table.csv and curves.csv to DIR, and keeps every finished run in DIR/runs: the
same command goes on where it was stopped, and more optimizers, points or seeds train only what is not there yet.
"""

import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment's file; --config.FIELD=VALUE sets a field")
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
flags.mark_flags_as_required(["config", "workdir"])


def search(name: str) -> list[dict[str, float]]:
    """The points that the flags mean for the optimizer `name`."""
    from deeplearn.comparison import points
    from deeplearn.errors import UserError

    if POINTS.value:
        return points.halton(name, POINTS.value, CONFIG.value.seed)
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


def main() -> None:
    start = time.perf_counter()
    from deeplearn import optimizers
    from deeplearn.commands import runs
    from deeplearn.comparison import protocol, report
    from deeplearn.training import manifest

    runs.prepare_jax()
    names = optimizers.split_list(OPTIMIZERS.value)
    points = {name: search(name) for name in names}  # every mistake shows before anything runs
    path, workdir, config = runs.config_path(), runs.make_workdir(WORKDIR.value), CONFIG.value
    seeds = range(config.seed, config.seed + SEEDS.value)
    manifest.check_same(workdir, config.to_dict())
    results, done, together = [], [], None
    with manifest.lock(workdir):
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
    compiling, training = sum(work.compile_seconds for work in done), sum(work.seconds for work in done)
    print()
    print((workdir / "table.md").read_text())
    print(f"{time.perf_counter() - start:.0f} s: {training:.0f} s of training, {compiling:.0f} s of compilation")
    print("the pictures and tables:", *paths, sep="\n  ")
