"""The language model on texts small enough for a test."""

import re

import numpy as np
import pytest

from deeplearn import experiment
from deeplearn.data import text
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.training import program, report

CELLS = ("rnn", "lstm", "gru")


def build(**fields):
    module = experiment.load("shakespeare_rnn")
    config = module.get_config()
    config.update({"mesh": "data:1", "length": 8, "hidden": 16, **fields})
    return module.build(config)


@pytest.mark.parametrize("cell", CELLS)
def test_what_can_be_known_is_learnt(monkeypatch, cell):
    """In 0 1 2 0 1 2 3 3 3 ... what follows a 2 or a 3 depends on what came long before."""
    tokens = np.tile(np.array([0, 1, 2, 0, 1, 2, 3, 3, 3], np.uint8), 40)
    source = Arrays({"tokens": text.windows(tokens, 18)})
    monkeypatch.setattr(text, "load", lambda name, length: Data(name, source, source, source))
    e = build(cell=cell, length=18, steps=200, batch_size=8, learning_rate=0.03)
    compiled = program.build(e)
    state, data = compiled.init(), compiled.feed.data(0, 100)
    for _ in range(2):
        state, _ = compiled.chunk(state, data, 100)
    values = compiled.evaluate(state, "test")
    assert values["loss"] < 0.1  # from the last token alone: (2 H(1/2) + 3 H(1/3)) / 9 = 0.37 at best
    assert values["accuracy"] > 0.95


def test_pictures_of_a_network_that_reads_tokens(tmp_path):
    report.before(tmp_path, build())
    text = (tmp_path / "parameters.txt").read_text()
    assert "int32[1,8]" in text and re.search(r"recurrent_kernel +\(16, 64\) +kernel 0 -> 1\n", text)
    assert {path.name for path in tmp_path.iterdir()} == {"parameters.txt", "network.png"}
