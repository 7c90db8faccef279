"""Directories of a run and of a study, made and read as the commands do it, without a program that computes."""

import json

import jax.numpy as jnp
import numpy as np

from deeplearn import experiment, identity
from deeplearn.comparison import history, plans, protocol, store, study
from deeplearn.comparison.sweep import Sweep
from deeplearn.identity import source as sources
from deeplearn.training import checkpoints, logs, manifest
from tests.deeplearn.training.states import abstract, make

SEED = 3


def plain(value):
    """A value whose equality is equality of all bits."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return repr(value) if isinstance(value, float) else value


# a run


def project(folder):
    """The Source of an experiment with a module of its own."""
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text("import part\n\n\ndef get_config():\n    return part.CONFIG\n")
    (folder / "part.py").write_text("CONFIG = {'width': 3}\n")
    return sources.Source(folder / "mine.py", {"part.py": folder / "part.py"})  # read at each start


def identified(source, seed=SEED, **changes):
    """The identity of a run with a seed; `changes` replace a section."""
    config = {"seed": seed, "learning_rate": 0.1, "features": [8, 8]}
    sections = {"config": config, "source": sources.digests(source), "data": {"train": "40 examples"}}
    return {**sections, "versions": {"jax": "1"}, "implementations": {"platform": "cpu"}, **changes}


def state(seed, step):
    """What a run of this seed has at a step."""
    return make(100 * seed + step)._replace(step=jnp.int32(step))


def train(workdir, source, seed=SEED, steps=(1, 2, 3), accept=(), **changes):
    """Begin the run, or go on with it; returns the step that it goes on from, None at the beginning."""
    own = identified(source, seed, **changes)
    with manifest.lock(workdir):
        admitted = manifest.admit(workdir, own, {**own["config"], "mesh": ""}, source, ["train"], accept)
        if not manifest.exists(workdir):
            manifest.write(workdir, admitted, source)
        ids = manifest.ids(manifest.read(workdir))
        with checkpoints.open(
            workdir / "checkpoints", keep=3, mode="max", identity=identity.digest(own), accepted=ids
        ) as manager:
            restored = checkpoints.restore_latest(manager, abstract(make(0)))
            manifest.write(workdir, admitted, source)
            start = restored.step if restored else None
            log = logs.open_logs(workdir, start)
            for step in [step for step in steps if step > (start or 0)]:
                log.write(step, {"loss": 1 / (seed + step), "validation/loss": np.inf if step == 2 else 0.5})
                metric = 0.9 if step == 2 else 0.5
                assert checkpoints.save(manager, step, state(seed, step), {"epoch": step / 2}, metric)
            log.close()
    return start


def read_run(workdir):
    """All that a run's directory holds but its checkpoints, and the steps of the latest and the best checkpoint.

    The states are compared with those of the seed in the manifest.
    """
    there = manifest.read(workdir)
    now, own, known = manifest.current(there), manifest.last_id(there), manifest.ids(there)
    copy = sources.stored(manifest.source_of(there), now["source"], workdir)
    copies = [path.read_bytes() for path in (copy.experiment, *copy.modules.values())]
    steps = []
    with checkpoints.open(workdir / "checkpoints", keep=3, mode="max", identity=own, accepted=known) as manager:
        for restore in (checkpoints.restore_latest, checkpoints.restore_best):
            restored = restore(manager, abstract(make(0)))
            steps.append(restored.step)
            assert bits(restored.state) == bits(state(now["config"]["seed"], restored.step))
            assert restored.metadata == {"epoch": restored.step / 2}
    return [there, now, known, copies, logs.read_metrics(workdir)], steps


def bits(state):
    """The arrays of a state, by their path, for a comparison of all bits."""
    from deeplearn.training import leaves

    return plain({name: np.asarray(leaves.data(leaf)) for name, leaf in leaves.named(state).items()})


# a study


def declare(**fields):
    """A Study of two optimizers, two points and two seeds."""
    fields = {"workloads": {"digits_mlp": {"epochs": 2.0}}, "optimizers": ["adam", "lion"], "points": 2, **fields}
    return study.make(**{"seeds": 2, "reruns": 2, **fields})


def of_workload(workload):
    """The identity of a workload's runs."""
    config = {name: value for name, value in workload.config.to_dict().items() if name != "mesh"}
    sections = {"config": config, "source": sources.digests(workload.source), "data": {"train": "d"}}
    return json.loads(json.dumps({**sections, "versions": {}, "implementations": {}}))


def compare(workdir, made):
    """Begin the study, or go on with it; the runs that are missing get made-up curves."""
    with manifest.lock(workdir):
        stored = history.read(workdir)
        identities = {workload.name: of_workload(workload) for workload in made.workloads}
        stored = history.extended(workdir, stored, made, identities)
        history.write(workdir, stored)
        manifest.write_study(workdir, study.as_json(made), "digits_mlp", ["compare"])
        for workload in made.workloads:
            for name in made.optimizers:
                place, ids = workdir / "runs" / workload.name, history.ids(stored, workload.name)
                points = study.search(made, name, workload.config.seed)

                def finish(phase, runs, place=place, name=name, ids=ids):
                    if missing := store.missing(place, name, phase, runs):
                        plan = plans.read(place, name)
                        planned = (entry for entry in plan[phase] if all(run in entry.runs for run in missing))
                        if (entry := next(planned, None)) is None:
                            entry = plans.Entry(True, 2, 1, tuple(missing))
                            plans.write(place, name, {**plan, phase: [*plan[phase], entry]})
                        made_up = sweep(name, missing, phase == "final")
                        (own,) = ids
                        store.write(place, phase, made_up, identity=own, entry=entry)
                    return store.read(place, name, phase, runs, ids)

                protocol.judge(points, study.seeds(made, workload), made.reruns, None, finish)


def sweep(optimizer, runs, tested):
    """Made-up results, which depend on the optimizer and the runs."""
    points = tuple(dict(items) for items in dict.fromkeys(tuple(point.items()) for point, _ in runs))
    rng = np.random.default_rng([len(runs), *optimizer.encode(), *(seed for _, seed in runs)])
    curve = rng.random((len(runs), 3))
    curve[0, 2] = np.nan
    return Sweep(
        optimizer=optimizer,
        points=points,
        point=np.array([points.index(point) for point, _ in runs]),
        seeds=np.array([seed for _, seed in runs]),
        steps=np.array([5, 10, 12]),
        examples=np.array([80, 160, 192]),
        epochs=np.array([1.0, 2.0, 2.4]),
        seconds=rng.random((len(runs), 3)),
        curves={"loss": curve, "validation/loss": curve + 1, "validation/accuracy": rng.random((len(runs), 3))},
        test={"accuracy": rng.random(len(runs))} if tested else {},
        compile_seconds=rng.random(len(runs)),
    )


def read_study(workdir):
    """All that a study's directory holds, as `report` reads it, and the plans."""
    kept = history.existing(workdir)
    declared, launched = history.declared(kept), manifest.read(workdir, "study")
    result = [kept, study.as_json(declared), launched]
    for workload in declared.workloads:
        place, seeds = workdir / "runs" / workload.name, study.seeds(declared, workload)
        target, ids = experiment.parse_target(workload.config.target), history.ids(kept, workload.name)
        for name in declared.optimizers:
            points = study.search(declared, name, workload.config.seed)
            result.append(plans.read(place, name))
            result.append(protocol.stored(place, name, points, seeds, declared.reruns, target, accepted=ids))
    return result
