"""compare optimizers on experiments: every point and seed of one in one program

    python -m deeplearn compare --config=FILE --optimizers=sgd,momentum,adam --seeds=5 --workdir=DIR
    python -m deeplearn compare --workloads=digits_mlp,sequence_rnn --points=16 --workdir=DIR
    python -m deeplearn compare --study=experiments/studies/two_cores.py --workdir=DIR
    python -m deeplearn compare --resume --optimizers=lion --workdir=DIR

Tunes on validation, runs each optimizer's best point again with fresh seeds, and evaluates those on test. Writes
report.html, tables and figures to DIR, and keeps every finished run in DIR/runs: the same command goes on where it was
stopped, and more workloads, optimizers, points or seeds train only what is not there yet.
"""

import sys
import time
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from deeplearn.commands import accepting, cluster

CONFIG = config_flags.DEFINE_config_file("config", None, "one experiment's file; --config.FIELD=VALUE sets a field")
STUDY = flags.DEFINE_string("study", None, "a study's file, which declares all that the flags below do; they go before")
WORKLOADS = flags.DEFINE_list("workloads", None, "several experiments, each with its own config; of a study, which")
WORKDIR = flags.DEFINE_string("workdir", None, "where the runs, tables and pictures go")
OPTIMIZERS = flags.DEFINE_string(
    "optimizers", None, "their names, each with settings if need be: adam,adamw(b1=0.8,weight_decay=0.1)"
)
LEARNING_RATES = flags.DEFINE_string(
    "learning_rates",
    None,
    "how many, evenly in log over each optimizer's search space (8); or the rates: 0.1,0.01",
)
POINTS = flags.DEFINE_integer(
    "points",
    None,
    "in place of learning rates: so many quasi-random points over all hyperparameters of each optimizer's search space",
)
SEEDS = flags.DEFINE_integer("seeds", None, "how many to tune with, from config.seed on (3)")
RERUNS = flags.DEFINE_integer(
    "reruns", None, "how many fresh seeds the best point is run again with, and evaluated on test (5); 0: none"
)
RESUME = flags.DEFINE_bool("resume", False, "go on with the study in the workdir; --optimizers adds to its own")
TOGETHER = flags.DEFINE_bool(
    "together",
    None,
    "train the runs of a device side by side, or (--notogether) one after another; unset: by their size",
)
LANES = flags.DEFINE_integer("lanes", None, "how many runs one program trains; unset: as many as fit in memory")
COUNT_COMPILE = flags.DEFINE_bool("count_compile", False, "count a run's share of the compilation in its seconds")
flags.mark_flag_as_required("workdir")
flags.adopt_module_key_flags(accepting)


def declared() -> dict[str, Any]:
    """The fields of the study that the flags name, before they change it."""
    from deeplearn.commands import runs
    from deeplearn.comparison import history, study
    from deeplearn.errors import UserError, unknown

    workdir = runs.local(WORKDIR.value)
    ways = {"--config": CONFIG.value, "--study": STUDY.value, "--resume": RESUME.value}
    given = [way for way, value in ways.items() if value]
    if len(given) > 1 or not given and not WORKLOADS.value or WORKLOADS.value and CONFIG.value:
        raise UserError("give one of --config=FILE, --study=FILE, --workloads=NAME,NAME and --resume")
    if accepting.COPY.value and not RESUME.value:
        raise UserError("--execute_copy executes the copies in the workdir; it needs --resume")
    if CONFIG.value:
        path = runs.config_path()
        return {"workloads": {Path(path).stem: {"experiment": path, **CONFIG.value.to_dict()}}}
    if not given:
        return {"workloads": WORKLOADS.value}
    fields = dict(study.load(STUDY.value) if STUDY.value else {})
    if RESUME.value:
        stored = history.existing(workdir)
        fields = {**stored.study, "workloads": dict(stored.study["workloads"])}
    if WORKLOADS.value:
        for name in WORKLOADS.value:
            if name not in fields["workloads"]:
                raise unknown("workload of the study", name, fields["workloads"])
        fields["workloads"] = {name: fields["workloads"][name] for name in WORKLOADS.value}
    if RESUME.value:
        for name, changes in fields["workloads"].items():
            source = history.source_of(workdir, stored, name, accepting.sections(), accepting.COPY.value)
            fields["workloads"][name] = {**changes, "experiment": source}
    return fields


def rates(text: str) -> int | list[float]:
    """What --learning_rates means; a nonsense number is left to the study to refuse."""
    from deeplearn.errors import UserError

    try:
        return int(text) if text.isdecimal() else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--learning_rates={text} is neither a number of rates nor a list of rates") from None


def chosen():
    """The Study of this command."""
    from deeplearn import optimizers
    from deeplearn.comparison import study
    from deeplearn.errors import UserError

    fields = declared()
    flagged = {"points": POINTS.value, "seeds": SEEDS.value, "reruns": RERUNS.value}
    flagged |= {"together": TOGETHER.value, "lanes": LANES.value}
    fields |= {name: value for name, value in flagged.items() if value is not None}
    if POINTS.value is not None and LEARNING_RATES.value:
        raise UserError("--points searches the learning rate too; give one of --points and --learning_rates")
    if POINTS.value is not None:
        fields.pop("learning_rates", None)
    if LEARNING_RATES.value:
        fields |= {"learning_rates": rates(LEARNING_RATES.value), "points": None}
    if OPTIMIZERS.value is not None:
        before = fields["optimizers"] if RESUME.value else []
        fields["optimizers"] = list(dict.fromkeys([*before, *optimizers.split_list(OPTIMIZERS.value)]))
    return study.make(resumed=RESUME.value, **fields)


def identify(workload):
    """The identity of a workload's runs; the number of devices and of cores is part of it, for the runs share them."""
    import jax

    from deeplearn import identity
    from deeplearn.commands import runs
    from deeplearn.identity import versions

    config = workload.config.copy_and_resolve_references()
    config.mesh = ""  # a study has no mesh: each of its runs has one device
    experiment = runs.build(workload.source, config)
    identified = identity.identify(experiment, workload.source, jax.devices()[:1])
    identified["implementations"] |= {"devices": jax.device_count(), "cores": versions.cores()}
    return identified


def compare(declared, workload, stored, workdir: Path, pressed):
    """All optimizers on one workload: the Outcome, and the Work done.

    Args:
      declared: the Study.
      workload: one of its.
      stored: the History, with the identities of this start.
      workdir: the study's directory.
      pressed: the event that Ctrl-C sets; the runs end at the next evaluation.
    """
    from deeplearn.commands import runs
    from deeplearn.comparison import history, live, protocol, study

    results, done = [], []
    seeds, ids = study.seeds(declared, workload), history.ids(stored, workload.name)
    identified = stored.identities[workload.name][-1]
    for name in declared.optimizers:
        if pressed.is_set():
            raise KeyboardInterrupt
        config = workload.config.copy_and_resolve_references()
        config.optimizer = name
        # Hours after the identification: the data and the library's files may be others by now.
        experiment = runs.build_again(f"{workload.name} in {workdir}", workload.source, config, identified)
        points = study.search(declared, name, config.seed)
        place = workdir / "runs" / workload.name
        result, works = protocol.run(
            place,
            name,
            experiment,
            points,
            seeds,
            declared.reruns,
            live.stopping(live.follow(name), pressed),
            declared.together,
            lanes=declared.lanes,
            identity=identified["id"],
            accepted=ids,
            replan="implementations" in accepting.sections(),
        )
        results.append(result)
        outcome = protocol.outcome(workload.name, results, experiment.target)
        print("\r" * sys.stdout.isatty() + "\n".join(live.ended(outcome, works)), flush=True)
        done += works
    return outcome, done


def main() -> int:
    start = time.perf_counter()
    from deeplearn.commands import runs
    from deeplearn.comparison import history, report, study
    from deeplearn.errors import UserError
    from deeplearn.identity import source
    from deeplearn.training import loop, manifest

    cluster.alone("compare")
    runs.prepare_jax(divide=True)
    accept = accepting.sections()
    if "config" in accept:
        raise UserError(
            "--accept=config is for train: runs with different configs do not compare; choose another --workdir"
        )
    declared, workdir = chosen(), runs.make_workdir(WORKDIR.value)
    with manifest.lock(workdir):
        stored = history.read(workdir)
        identities = {workload.name: identify(workload) for workload in declared.workloads}
        if any("id" not in entry for entries in stored.identities.values() for entry in entries):
            logging.warning("%s", manifest.unproven(workdir))
        stored = history.extended(workdir, stored, declared, identities, accept)
        for workload in declared.workloads:
            source.keep(workload.source, workdir)
        history.write(workdir, stored)
        path = STUDY.value or str(declared.workloads[0].source.experiment)
        launched = manifest.write_study(workdir, study.as_json(declared), path, runs.command())
        outcomes, works = [], []
        for workload in declared.workloads:
            if len(declared.workloads) > 1:
                print(f"\n{workload.name}")
            try:
                with loop.stop_signals() as pressed:
                    outcome, done = compare(declared, workload, stored, workdir, pressed)
            except KeyboardInterrupt:
                print(
                    f"\nstopped; the runs that were finished are in {workdir}, and the same command goes on with them"
                )
                return 130  # what a shell says of a program that Ctrl-C ended
            outcomes.append(outcome)
            works += done
        paths = report.write(workdir, study.title(declared), outcomes, launched, COUNT_COMPILE.value)
    runs.show(paths)
    training, compiling = sum(work.seconds for work in works), sum(work.compile_seconds for work in works)
    print(f"{time.perf_counter() - start:.0f} s: {training:.0f} s of training, {compiling:.0f} s of compilation")
    return 0
