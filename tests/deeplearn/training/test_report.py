"""What the pictures and the report of a run are of; predictions take no more memory than an evaluation."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn import pictures
from deeplearn.config import base_config
from deeplearn.data.sources import Arrays
from deeplearn.training import loop, report
from deeplearn.training.restoring import Restored


def experiment(eval_batch_size, shapes):
    def predict(params, model_state, batch):
        shapes.append(batch["inputs"].shape)
        return (params * batch["inputs"]).astype(jnp.bfloat16)

    return SimpleNamespace(task=SimpleNamespace(predict=predict), config=base_config(eval_batch_size=eval_batch_size))


@pytest.mark.parametrize("size, at_once", [(1, 1), (3, 3), (7, 7), (500, 10)])
def test_predictions_are_made_in_batches_of_an_evaluation(size, at_once):
    """And by one program, whatever is left for the last batch."""
    shapes, inputs = [], np.arange(20, dtype=np.float32).reshape(10, 2)
    found = report.predictions(experiment(size, shapes), np.float32(2), {}, {"inputs": inputs})
    assert found.dtype == np.float32 and shapes == [(at_once, 2)]
    np.testing.assert_array_equal(found, 2 * inputs)


def test_a_text_has_no_predictions_to_draw(tmp_path, monkeypatch):
    """Logits of every token of a thousand windows would take 200 GB for GPT-2."""
    drawn = []
    monkeypatch.setattr(pictures, "curves", lambda path, records: drawn.append(path.name))
    data = SimpleNamespace(test=None, classes=(), spec={"tokens": jax.ShapeDtypeStruct((9,), np.uint8)})
    (tmp_path / "metrics.jsonl").touch()
    report.draw(tmp_path, SimpleNamespace(data=data, task=None), None, None, {})
    assert drawn == ["curves.png"]


def test_what_is_drawn_of_the_best_checkpoint(tmp_path, monkeypatch):
    """What the parameters that are evaluated, those of an average, say of the test split."""
    drawn = []
    monkeypatch.setattr(report, "draw", lambda *arguments: drawn.extend(arguments[2:]))
    values = {"train": 0.25, "validation": 0.5, "test": 0.75}
    program = SimpleNamespace(evaluate=lambda state, split: {"loss": np.float32(values[split])})
    optimizer = SimpleNamespace(evaluation_params=lambda opt_state, params: opt_state)
    data = SimpleNamespace(split=lambda split: range(9))
    made = SimpleNamespace(optimizer=optimizer, data=data, target=None)
    state = SimpleNamespace(params={"w": jnp.zeros(2)}, opt_state={"w": jnp.ones(2)}, model_state={"m": jnp.ones(1)})
    best, progress = Restored(state, {}, 7, 0.5), loop.Progress(best=0.5, best_step=7)
    text = report.after(tmp_path, made, program, best, progress, "done")
    params, model_state, test = drawn
    assert params["w"].tolist() == [1, 1] and model_state["m"].tolist() == [1] and test == {"loss": 0.75}
    assert "best checkpoint at step 7" in text
    said = json.loads((tmp_path / "evaluation.json").read_text())
    assert {split: said[split]["loss"] for split in values} == values


def test_the_confusion_matrix_counts_the_test_split(tmp_path, monkeypatch):
    """All of it, though the other pictures are of some of its examples."""
    drawn = {}
    monkeypatch.setattr(report, "SHOWN", 3)
    for name in ("curves", "confusion_matrix", "wrong_predictions"):
        monkeypatch.setattr(pictures, name, lambda path, *arguments, name=name: drawn.update({name: arguments}))
    test = Arrays({"image": np.arange(8, dtype=np.float32).reshape(8, 1), "label": np.array([0, 1] * 4)})
    task = SimpleNamespace(predict=lambda params, model_state, batch: params * batch["image"])
    data = SimpleNamespace(test=test, classes=("a", "b"), spec=test.arrays)
    made = SimpleNamespace(task=task, data=data, config=base_config())
    report.draw(tmp_path, made, np.float32(2), {}, {"confusion": np.array([[3, 1], [0, 4]], np.float32) / 8})
    counts, classes = drawn["confusion_matrix"]
    assert counts.tolist() == [[3, 1], [0, 4]] and classes == ("a", "b")
    assert [len(x) for x in drawn["wrong_predictions"][:3]] == [3, 3, 3]
