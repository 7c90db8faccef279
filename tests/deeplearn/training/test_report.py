"""The pictures' predictions take no more memory than an evaluation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplearn import pictures
from deeplearn.config import base_config
from deeplearn.training import report


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
