"""What the library writes is JSON by its standard: any reader takes it, and reading it back gives the same numbers."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deeplearn import strict_json
from deeplearn.experiment import HOME
from deeplearn.training import checkpoints, logs
from tests.deeplearn import directories
from tests.deeplearn.training.states import make, of_step

TEXTS = st.text().filter(lambda text: text not in strict_json.NOT_FINITE)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


def strict(text):
    """The content; an error for what the standard does not have."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(VALUES)
@example([math.nan, {"a": math.inf, "b": [-math.inf, -0.0]}])
@example("nan")
def test_what_is_written_comes_back(value):
    back = strict_json.decode(strict(strict_json.dumps(value)))
    assert repr(back) == repr(value)


def test_a_tuple_comes_back_as_a_list():
    assert strict_json.decode(strict(strict_json.dumps({"a": (1.5, (math.inf,))}))) == {"a": [1.5, [math.inf]]}


@pytest.mark.parametrize("text", strict_json.NOT_FINITE)
def test_a_text_that_would_come_back_as_a_number(text):
    with pytest.raises(ValueError, match="stands for a number"):
        strict_json.dumps({"a": [text]})


def documents(folder):
    """Every JSON text under a folder, by its path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix == ".json":
            yield path, path.read_text()
        elif path.is_file() and path.name.startswith("metrics.jsonl"):
            yield from ((path, line) for line in path.read_text().splitlines())


def test_a_run_and_a_study(places):
    """Whose metrics and curves are in part not finite."""
    found = {}
    for folder in (places.a, places.s):
        for path, text in documents(folder):
            strict(text)
            found.setdefault(path.name if path.parent == folder else path.parent.name, []).append(text)
    assert found.keys() >= {"manifest.json", "metrics.jsonl", "record", "study.json", "adam"}
    assert any("Infinity" in text for text in found["metrics.jsonl"])
    assert any("NaN" in text for text in found["adam"])
    assert logs.read_metrics(places.a)[1]["validation/loss"] == math.inf
    assert directories.read_study(places.s)


def test_the_record_of_a_checkpoint(tmp_path):
    """Its metadata come back; a metric that is not finite is none."""
    metadata = {"best": math.nan, "seconds": math.inf, "name": "a"}
    with checkpoints.open(tmp_path, mode="max") as manager:
        for step, metric in enumerate((math.inf, -math.inf, math.nan, 0.5), 1):
            checkpoints.save(manager, step, make(step), metadata, metric)
        restored = checkpoints.restore_best(manager, make(0))
    assert repr(restored.metadata) == repr(metadata) and (restored.step, restored.metric) == (4, 0.5)
    record = strict((of_step(tmp_path, 3) / "record" / "record.json").read_text())["record"]
    assert record["metric"] is None and record["metadata"] == {"best": "NaN", "seconds": "Infinity", "name": "a"}


def test_the_record_of_a_checkpoint_from_before(tmp_path, monkeypatch):
    """A bare NaN in it is read, and an infinite metric is not the best."""
    monkeypatch.setattr(strict_json, "encode", lambda value: value)
    monkeypatch.setattr(json, "dumps", lambda *args, dumps=json.dumps, **options: dumps(*args, **options | ALLOW))
    monkeypatch.setattr(checkpoints.math, "isfinite", lambda value: True)
    with checkpoints.open(tmp_path, mode="max") as manager:
        checkpoints.save(manager, 1, make(1), {"best": math.nan}, math.inf)
        checkpoints.save(manager, 2, make(2), {"best": math.nan}, 0.5)
    monkeypatch.undo()
    with checkpoints.open(tmp_path, mode="max") as manager:
        restored = checkpoints.restore_best(manager, make(0))
    assert restored.step == 2 and math.isnan(restored.metadata["best"])


ALLOW = {"allow_nan": True}


def test_the_evaluation_at_the_end_of_a_run(tmp_path):
    """Of a class without examples the accuracy is 0 / 0."""
    from deeplearn.config import base_config
    from deeplearn.data.sources import Arrays
    from deeplearn.data.splits import Data
    from deeplearn.experiment import wire
    from deeplearn.models.mlp import MLP
    from deeplearn.tasks.classification import classification
    from deeplearn.training import loop, program, report, restoring

    part = Arrays({"image": np.zeros((8, 2, 2, 1), np.float32), "label": np.arange(8, dtype=np.int32) % 2})
    config = base_config(batch_size=8, steps=1, mesh="data:1")
    e = wire(config, classification(MLP((4,), 3), (2, 2, 1), 3), Data("d", part, part, part, ("a", "b", "c")))
    built = program.build(e)
    state, _ = built.chunk(built.init(), built.feed.data(0, 1), 1)
    log = logs.open_logs(tmp_path)
    log.write(1, {"loss": 1.0})
    log.close()
    lines = report.after(tmp_path, e, built, restoring.Restored(state, {}, 1), loop.Progress(), "done").splitlines()
    assert lines[0].startswith("done: last checkpoint at step 1, ")
    assert lines[1] == "  not the best checkpoint: no evaluation has given a finite value"
    found = strict((tmp_path / "evaluation.json").read_text())
    assert found["test"]["class_accuracy"][2] == "NaN" and found["checkpoint"] == "last checkpoint"
    assert math.isnan(strict_json.decode(found)["test"]["class_accuracy"][2])


@pytest.mark.parametrize("path", sorted(HOME.parent.glob("kernels/results/*.json")), ids=lambda path: path.name)
def test_the_figures_that_come_along(path):
    strict(path.read_text())


def test_jax_arrays_are_no_json():
    """They would have to be fetched: that is for the caller to see."""
    with pytest.raises(TypeError):
        strict_json.dumps({"loss": jnp.float32(1)})
