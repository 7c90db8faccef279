"""evaluate the best checkpoint of a run

    python -m deeplearn evaluate --workdir=runs/mnist [--split=test] [--checkpoint=best]

Prints every metric, and accuracy by class where there are classes.
"""

from absl import flags

from deeplearn.commands import accepting, cluster

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory")
SPLIT = flags.DEFINE_string("split", "test", "train, validation or test")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation) or last")
MESH = flags.DEFINE_string("mesh", None, "of the devices here, as --config.mesh of train; the run's own unless given")
flags.mark_flag_as_required("workdir")
flags.adopt_module_key_flags(accepting)
flags.adopt_module_key_flags(cluster)


def main() -> None:
    from deeplearn import files
    from deeplearn.commands import runs

    runs.prepare_jax()
    workdir = files.reach(WORKDIR.value)
    opened = runs.open_run(workdir, accepting.sections(), accepting.COPY.value)
    alike = {"command": "evaluate", "--split": SPLIT.value, "--checkpoint": CHECKPOINT.value, "--mesh": MESH.value}
    alike |= {f"config.{name}": value for name, value in opened.config.to_dict().items()}
    with cluster.joined(alike, opened.source, WORKDIR.value):
        evaluate(workdir, opened)


def evaluate(workdir, opened) -> None:
    """Evaluate the run in a workdir, and print what is found."""
    from deeplearn.commands import runs
    from deeplearn.parallel import processes

    experiment, program, restored = runs.restore(workdir, opened, CHECKPOINT.value, MESH.value, accepting.sections())
    source = experiment.data.split(SPLIT.value)
    values = program.evaluate(restored.state, SPLIT.value)
    if processes.is_main():
        print(f"{SPLIT.value}, {len(source):,} examples, step {restored.step}:")
        print(runs.describe(values, experiment.data.classes))
