"""train an experiment, or go on with one that was interrupted

    python -m deeplearn train --config=experiments/mnist_cnn.py --workdir=runs/mnist [--config.optimizer=nadam ...]

The same command goes on where a run was stopped or killed, and ends with the same parameters, bit for bit.
"""

import contextlib
import json
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment's file; --config.FIELD=VALUE sets a field")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory: checkpoints, logs and pictures")
PROFILE = flags.DEFINE_bool("profile", False, "write a trace of a few chunks to WORKDIR/profile")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    from deeplearn.commands import runs

    runs.prepare_jax()
    config, workdir = CONFIG.value, Path(WORKDIR.value)
    path = flags.FLAGS["config"].config_filename
    return run(path, config, workdir, profile=PROFILE.value)


def run(path: str, config, workdir: Path, profile: bool = False) -> int:
    """Train the experiment of the file at `path` in `workdir`; the status to exit with."""
    import jax

    from deeplearn import optimizers
    from deeplearn.commands import pictures, runs
    from deeplearn.parallel import placement, processes
    from deeplearn.training import checkpoints, logs, loop, manifest
    from deeplearn.training import program as programs

    experiment = runs.build(path, config)
    program = programs.build(experiment)
    workdir.mkdir(parents=True, exist_ok=True)
    with manifest.lock(workdir):
        manifest.check_same(workdir, config.to_dict())
        manifest.write(workdir, config=config.to_dict(), experiment=path, command=sys.argv)
        with contextlib.closing(checkpoints.open(workdir / "checkpoints")) as saved:
            ...
    return 0
