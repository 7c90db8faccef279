"""evaluate the best checkpoint of a run

    python -m deeplearn evaluate --workdir=runs/mnist [--split=test] [--checkpoint=best]

Prints every metric, and accuracy by class where there are classes.
"""

from absl import flags

from deeplearn.commands import cluster

WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory")
SPLIT = flags.DEFINE_string("split", "test", "train, validation or test")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation) or last")
MESH = flags.DEFINE_string("mesh", None, "of the devices here, as --config.mesh of train; the run's own unless given")
flags.mark_flag_as_required("workdir")
flags.adopt_module_key_flags(cluster)


def main() -> None:
    from deeplearn import files
    from deeplearn.commands import runs
    from deeplearn.training import manifest

    runs.prepare_jax()
    workdir = files.reach(WORKDIR.value)
    written = manifest.read(workdir)
    alike = {"command": "evaluate", "--split": SPLIT.value, "--checkpoint": CHECKPOINT.value, "--mesh": MESH.value}
    alike |= {f"config.{name}": value for name, value in written["config"].items()}
    with cluster.joined(alike, written["experiment"], WORKDIR.value):
        evaluate(workdir)


def evaluate(workdir) -> None:
    """Evaluate the run in a workdir, and print what is found."""
    from deeplearn.commands import runs
    from deeplearn.parallel import processes

    experiment, program, restored = runs.restore(workdir, CHECKPOINT.value, MESH.value)
    source = experiment.data.split(SPLIT.value)
    values = program.evaluate(restored.state, SPLIT.value)
    if processes.is_main():
        print(f"{SPLIT.value}, {len(source):,} examples, step {restored.step}:")
        print(runs.describe(values, experiment.data.classes))
