"""rebuild a comparison's report, tables and figures from its finished runs, without training

    python -m deeplearn report --workdir=DIR

An optimizer of which runs are missing is left out, and named. --count_compile counts each run's share of the
compilation in its seconds.
"""

from pathlib import Path

from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "that of a `deeplearn compare`")
COUNT_COMPILE = flags.DEFINE_bool("count_compile", False, "count a run's share of the compilation in its seconds")
flags.mark_flag_as_required("workdir")


def stored(declared, workload, workdir: Path, ids):
    """The Outcome of the finished runs of a workload, None where there is none; says what is missing.

    Args:
      declared: the Study.
      workload: one of its.
      workdir: the study's directory.
      ids: the identities that the runs may have.
    """
    from deeplearn.comparison import protocol, study
    from deeplearn.experiment import parse_target

    place, seeds, results = workdir / "runs" / workload.name, study.seeds(declared, workload), []
    target = parse_target(workload.config.target)
    for name in declared.optimizers:
        points = study.search(declared, name, workload.config.seed)
        try:
            results.append(protocol.stored(place, name, points, seeds, declared.reruns, target, accepted=ids))
        except protocol.Unfinished as error:
            print(f"{workload.name}: {error}")
    return protocol.outcome(workload.name, results, target) if results else None


def main() -> None:
    from deeplearn.commands import runs
    from deeplearn.comparison import history, report, study
    from deeplearn.errors import UserError
    from deeplearn.training import manifest

    workdir = runs.local(WORKDIR.value)
    history.existing(workdir)  # before the lock makes a directory
    with manifest.lock(workdir):
        kept = history.existing(workdir)
        declared = history.declared(kept)
        outcomes = [
            outcome for w in declared.workloads if (outcome := stored(declared, w, workdir, history.ids(kept, w.name)))
        ]
        if not outcomes:
            raise UserError(f"{workdir} has no optimizer with all its runs; run `deeplearn compare --resume` first")
        launched = manifest.read(workdir, "study")
        paths = report.write(workdir, study.title(declared), outcomes, launched, COUNT_COMPILE.value)
    runs.show(paths)
