"""evaluate the best checkpoint of a run

    python -m deeplearn evaluate --workdir=runs/mnist [--split=test] [--checkpoint=best]

Prints every metric, and accuracy by class where there are classes.
"""

from pathlib import Path

from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory")
SPLIT = flags.DEFINE_string("split", "test", "train, validation or test")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation) or last")
flags.mark_flag_as_required("workdir")


def main() -> None:
    from deeplearn.commands import runs
    from deeplearn.errors import UserError, unknown
    from deeplearn.training import checkpoints, manifest
    from deeplearn.training import program as programs

    restores = {"best": checkpoints.restore_best, "last": checkpoints.restore_latest}
    if CHECKPOINT.value not in restores:
        raise unknown("checkpoint", CHECKPOINT.value, restores)
    runs.prepare_jax()
    workdir = Path(WORKDIR.value)
    written = manifest.read(workdir)
    experiment = runs.build(written["experiment"], runs.config_of(written))
    source = experiment.data.split(SPLIT.value)
    program = programs.build(experiment)
    restored = restores[CHECKPOINT.value](checkpoints.open(workdir / "checkpoints", mode="max"), program.abstract)
    if restored is None:
        raise UserError(f"{workdir} has no intact checkpoint; train it first, with the command in its manifest.json")
    values = program.evaluate(restored.state, SPLIT.value)
    print(f"{SPLIT.value}, {len(source):,} examples, step {restored.step}:")
    print(runs.describe(values, experiment.data.classes))
