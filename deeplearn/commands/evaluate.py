"""evaluate the best checkpoint of a run

    python -m deeplearn evaluate --workdir=runs/mnist [--split=test] [--checkpoint=best]

Prints every metric, and accuracy by class where there are classes.
"""

from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory")
SPLIT = flags.DEFINE_string("split", "test", "train, validation or test")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation) or last")
flags.mark_flag_as_required("workdir")


def main() -> None:
    from deeplearn import files
    from deeplearn.commands import runs

    runs.prepare_jax()
    experiment, program, restored = runs.restore(files.reach(WORKDIR.value), CHECKPOINT.value)
    source = experiment.data.split(SPLIT.value)
    values = program.evaluate(restored.state, SPLIT.value)
    print(f"{SPLIT.value}, {len(source):,} examples, step {restored.step}:")
    print(runs.describe(values, experiment.data.classes))
