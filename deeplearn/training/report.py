"""What a run leaves for people: the model before it, the metrics and the pictures after it."""

from pathlib import Path

import jax
import numpy as np

from deeplearn import files, pictures, roles, strict_json
from deeplearn.parallel import processes
from deeplearn.training import logs, restoring

SHOWN = 1000  # test examples that the pictures are taken from


def before(workdir: Path, experiment) -> None:
    """The tables of layers and of roles, the network as a graph, and samples of the data with their labels."""
    if not processes.is_main():
        return
    data = experiment.data
    batch = data.train.__getitems__(range(min(36, len(data.train))))
    params, _ = jax.eval_shape(lambda: experiment.task.init(jax.random.key(0)))
    table = roles.table(params, experiment.roles(params))
    if experiment.model is not None:
        if "tokens" in batch:
            example = np.zeros_like(data.validation.__getitems__([0])["tokens"][:, :-1], np.int32)  # no margin
        else:
            example = np.zeros((1, *batch[next(iter(batch))].shape[1:]), np.float32)
        table = f"{pictures.layer_table(experiment.model, example)}\n{table}"
        pictures.network(workdir / "network.png", experiment.model, example)
    with files.replacing(workdir / "parameters.txt") as path:
        path.write_text(f"{table}\n")
    if data.classes:
        pictures.samples(workdir / "samples.png", batch["image"], batch["label"], data.classes)


def after(workdir: Path, experiment, program, best, progress, reason: str) -> str:
    """Evaluate the best checkpoint on every split, draw it, and say in a few lines how the run went.

    `best` is another checkpoint if the best is damaged, see `restoring.described`.
    """
    kind, lost = restoring.described(best, progress.best_step)
    values = {split: jax.device_get(program.evaluate(best.state, split)) for split in ("train", "validation", "test")}
    params = jax.jit(experiment.optimizer.evaluation_params)(best.state.opt_state, best.state.params)
    params, model_state = processes.fetch((params, best.state.model_state))
    if not processes.is_main():
        return ""
    summary = {
        "checkpoint": kind,
        "step": best.step,
        "target_step": progress.target_step,
        "target_seconds": progress.target_seconds,
        "seconds": progress.seconds,
        **{split: {name: np.asarray(x).tolist() for name, x in found.items()} for split, found in values.items()},
    }
    with files.replacing(workdir / "evaluation.json") as path:
        path.write_text(strict_json.dumps(summary, indent=1))
    draw(workdir, experiment, params, model_state, values["test"])

    ended = {"done": "done", "early": f"stopped early, {progress.stale} evaluations without a better one"}[reason]
    lines = [f"{ended}: {kind} at step {best.step:,}, {progress.seconds:.1f} s of training"]
    lines += [f"  not the best checkpoint: {lost}"] if lost else []
    for split, found in values.items():
        scalars = ", ".join(f"{name} {float(x):.4f}" for name, x in sorted(found.items()) if np.ndim(x) == 0)
        lines.append(f"  {split:10} {scalars}  ({len(experiment.data.split(split)):,} examples)")
    if experiment.target:
        goal, relation = experiment.target, ">=" if experiment.target.rises else "<="
        reached = (
            "never"
            if progress.target_step is None
            else (f"at step {progress.target_step:,}, after {progress.target_seconds:.1f} s")
        )
        lines.append(f"  validation {goal.metric} {relation} {goal.value:g} reached: {reached}")
    lines.append(f"pictures, metrics and checkpoints: {workdir}")
    return "\n".join(lines)


def draw(workdir: Path, experiment, params, model_state, test: dict) -> None:
    """The curves, and what the best parameters, on the host, make of the test split."""
    pictures.curves(workdir / "curves.png", logs.read_metrics(workdir))
    split, classes = experiment.data.test, experiment.data.classes
    if not classes and "inputs" not in experiment.data.spec:
        return
    batch = split.__getitems__(range(min(SHOWN, len(split))))
    outputs = predictions(experiment, params, model_state, batch)
    if classes:
        counts = np.rint(np.asarray(test["confusion"], np.float64) * len(split)).astype(int)
        pictures.confusion_matrix(workdir / "confusion.png", counts, classes)
        pictures.wrong_predictions(workdir / "wrong.png", batch["image"], batch["label"], outputs, classes)
    else:
        pictures.sequences(workdir / "predictions.png", batch["inputs"], batch["targets"], outputs)


def predictions(experiment, params, model_state, batch: dict) -> np.ndarray:
    """The model's outputs for these rows, float32, as many at once as an evaluation takes."""
    predict = jax.jit(experiment.task.predict)
    count = len(next(iter(batch.values())))
    size = min(experiment.config.eval_batch_size, count)
    params, model_state = jax.device_put((params, model_state))
    outputs = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # the last are filled up: one program serves all
        part = jax.device_put({name: x[rows] for name, x in batch.items()})
        outputs.append(jax.device_get(predict(params, model_state, part)))
    return np.concatenate(outputs).astype(np.float32)[:count]
