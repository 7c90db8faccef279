"""compare optimizers on an experiment: every learning rate and seed of one in one program

    python -m deeplearn compare --config=FILE --optimizers=sgd,momentum,adam --seeds=5 --workdir=DIR
    python -m deeplearn compare --config=FILE --optimizers=adam,lion --points=16 --workdir=DIR

Writes curves.png, learning_rates.png, table.md, table.csv and curves.csv to DIR.
"""

import sys
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
SEEDS = flags.DEFINE_integer("seeds", 3, "how many, from config.seed on", lower_bound=1)
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
    from deeplearn.comparison import report
    from deeplearn.comparison.sweep import sweep
    from deeplearn.training import manifest
    from deeplearn.training.loop import monitored

    runs.prepare_jax()
    names = optimizers.split_list(OPTIMIZERS.value)
    points = {name: search(name) for name in names}  # every mistake shows before anything runs
    path, workdir = flags.FLAGS["config"].config_filename, runs.make_workdir(WORKDIR.value)
    seeds = range(CONFIG.value.seed, CONFIG.value.seed + SEEDS.value)
    sweeps, abreast = [], None
    with manifest.lock(workdir):
        manifest.write(workdir, config=CONFIG.value.to_dict(), experiment=path, command=sys.argv)
        for name in names:
            config = CONFIG.value.copy_and_resolve_references()
            config.optimizer = name
            experiment = runs.build(path, config)
            result = sweep(name, experiment, points[name], seeds, runs.progress(f"{name:14}"), abreast)
            abreast = result.plan.abreast  # what was faster for the first optimizer is for the others
            sweeps.append(result)
            print(
                f"\r{name:14} {len(result.seeds)} runs of {result.steps[-1]} steps in"
                f" {result.seconds[-1] * len(result.seeds):.1f} s, after {result.compile_seconds:.1f} s of compilation;"
                f" {int(result.diverged.sum())} diverged; {result.plan}",
                flush=True,
            )
        goal = monitored(experiment.target, {"accuracy": 0} if "validation/accuracy" in result.curves else {"loss": 0})
        what = f"{len(points[names[0]])} {'points' if POINTS.value else 'learning rates'}"
        title = f"{Path(path).stem}: {len(names)} optimizers x {what} x {len(seeds)} seeds"
        paths = report.write(workdir, title, sweeps, goal, f"validation/{goal.metric}")
    compiling, training = sum(s.compile_seconds for s in sweeps), sum(s.seconds[-1] * len(s.seeds) for s in sweeps)
    print()
    print((workdir / "table.md").read_text())
    print(f"{time.perf_counter() - start:.0f} s: {training:.0f} s of training, {compiling:.0f} s of compilation")
    print("the pictures and tables:", *paths, sep="\n  ")
