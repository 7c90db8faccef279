"""train an experiment, or go on with one that was interrupted

    python -m deeplearn train --config=experiments/mnist_cnn.py --workdir=runs/mnist [--config.optimizer=nadam ...]
    python -m deeplearn train --workdir=runs/mnist

The same command goes on where a run was stopped or killed, and ends with the same parameters, bit for bit; so does the
second one, which takes the experiment and its config from the run's directory.
Of several processes each gets the same command; those of Cloud TPU, SLURM and Kubernetes find each other.
"""

import contextlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from deeplearn.commands import accepting, cluster

CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment's file; --config.FIELD=VALUE sets a field")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's directory: checkpoints, logs and pictures")
PROFILE = flags.DEFINE_bool("profile", False, "write a trace of three chunks to WORKDIR/profile")
flags.mark_flag_as_required("workdir")
flags.adopt_module_key_flags(accepting)
flags.adopt_module_key_flags(cluster)


def main() -> None:
    from deeplearn import files
    from deeplearn.commands import runs

    runs.prepare_jax()
    workdir = files.reach(WORKDIR.value)
    source, config = chosen(workdir)
    alike = {
        "command": "train",
        "--workdir": WORKDIR.value,
        "--profile": PROFILE.value,
        "--accept": list(accepting.sections()),
    }
    alike |= {f"config.{name}": value for name, value in config.to_dict().items()}
    with cluster.joined(alike, source, WORKDIR.value):
        run(source, config, workdir)


def chosen(workdir: Path):
    """The source of the experiment and its config: those that --config names, else those of the run in the workdir."""
    from deeplearn import experiment
    from deeplearn.commands import runs
    from deeplearn.errors import UserError
    from deeplearn.identity import source
    from deeplearn.training import manifest

    if CONFIG.value and accepting.COPY.value:
        raise UserError("--execute_copy executes the copy in the workdir, not the file of --config; give one of them")
    if CONFIG.value:
        return source.collect(experiment.find(runs.config_path())), CONFIG.value
    if manifest.kind(workdir) is None:
        raise UserError("give the experiment, as --config=FILE; a --workdir alone goes on with the run that it holds")
    opened = runs.open_run(workdir, accepting.sections(), accepting.COPY.value)
    return opened.source, opened.config


def run(source, config, workdir: Path) -> None:
    """Train in a workdir that is free, or holds the same run; process 0 alone sees to that."""
    from deeplearn import identity
    from deeplearn.commands import runs
    from deeplearn.parallel import processes
    from deeplearn.training import manifest

    main = processes.is_main()
    experiment = processes.in_turn(lambda: runs.build(source, config))
    identified = runs.identify(experiment, source)
    with manifest.lock(workdir) if main else contextlib.nullcontext():
        if main:
            accept = accepting.sections()
            admitted = manifest.admit(workdir, identified, config.to_dict(), source, runs.command(), accept)
            if not manifest.exists(workdir):
                manifest.write(workdir, admitted, source)
        cluster.check_shared(workdir)

        def record():
            if main:
                manifest.write(workdir, admitted, source)

        train(experiment, workdir, identity.digest(identified), record)


def train(experiment, workdir: Path, identity: str, record: Callable[[], None]) -> None:
    """Run the experiment in its workdir, say how it went, and draw the pictures.

    Args:
      experiment: the Experiment.
      workdir: its directory, held by `manifest.lock`.
      identity: the hash that its checkpoints carry.
      record: called once the run's checkpoint is restored: a checkpoint of another model is refused before that.
    """
    from deeplearn import files, roles
    from deeplearn.parallel import processes
    from deeplearn.training import checkpoints, logs, loop, manifest, program, report

    main = processes.is_main()
    compiled = program.build(experiment)
    if main and compiled.mesh.size > 1:
        print(program.placed(compiled, experiment.roles), file=sys.stderr)
    say(roles.summary(experiment.roles(compiled.abstract.params)), sys.stderr)
    with contextlib.ExitStack() as stack:
        # To the end: machines that are taken away get their signals one after another, the last while others save.
        signalled = stack.enter_context(loop.stop_signals())
        ids = manifest.ids(manifest.read(workdir))
        manager = checkpoints.open(workdir / "checkpoints", mode="max", identity=identity, accepted=ids)
        stack.callback(checkpoints.close, manager)
        restored = checkpoints.restore_latest(manager, compiled.abstract)
        record()
        state, progress = compiled.init(), loop.Progress()
        if restored:
            state, progress = restored.state, loop.Progress(**restored.metadata)
            say(f"going on from the checkpoint of step {restored.step:,} of {experiment.steps:,}", sys.stderr)
        else:
            report.before(workdir, experiment)
        start = restored.step if restored else None
        log = logs.open_logs(workdir, start) if main else logs.NO_LOGS
        stack.callback(log.close)
        bar = logs.progress(experiment.steps, experiment.batch_size, start or 0) if main else logs.NO_PROGRESS
        stack.callback(bar.close)
        tick = bar.tick
        if PROFILE.value and main:
            folder, push = files.mirror(workdir)
            stack.callback(push, now=True)
            tick = profiled(folder / "profile", stack, tick)

        processes.gathered(None)  # wait here while process 0 draws: a collective does not wait for long

        def write(step, record):
            log.write(step, record)
            if any(name.startswith("validation/") for name in record):
                bar.note(step, record)

        def save(step, state, progress, score):
            log.flush()  # a run goes on from here, and these lines must not be missing then
            return checkpoints.save(manager, step, state, progress._asdict(), score)

        hooks = loop.Hooks(write, save, tick)
        state, progress, reason = loop.train(experiment, compiled, state, progress, hooks, signalled)
        checkpoints.wait(manager)
        if reason == "signal":
            bar.close()
            again = shlex.join(["python", "-m", "deeplearn", *sys.argv[1:]])
            say(f"stopped at step {int(state.step):,}, saved; to go on: {again}", sys.stderr)
            return
        best = checkpoints.restore_best(manager, compiled.abstract)
        best = best or checkpoints.restore_latest(manager, compiled.abstract)
        best = best or checkpoints.Restored(state, {}, int(state.step))
        bar.close()
        say(report.after(workdir, experiment, compiled, best, progress, reason))


def say(text: str, stream=None) -> None:
    """Print it, once, in however many processes."""
    from deeplearn.parallel import processes

    if processes.is_main():
        print(text, file=stream, flush=True)


def profiled(directory: Path, stack: contextlib.ExitStack, tick):
    """`tick`, which also traces the program from the end of the first chunk, its compilation over, to the fourth's."""
    import jax

    trace, ticks = contextlib.ExitStack(), 0
    stack.callback(trace.close)

    def traced(step, record):
        nonlocal ticks
        tick(step, record)
        ticks += 1
        if ticks == 1:
            trace.enter_context(jax.profiler.trace(str(directory)))
        if ticks == 4:
            trace.close()

    return traced
