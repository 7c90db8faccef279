"""Every optimizer of the table steps as torch.optim does, or as its paper says, on every kind of parameter."""

import pytest

from deeplearn.optimizers import OPTIMIZERS
from tests.deeplearn.optimizers import cases, make_table, problem, references

BOUND = 1e-12
RUNS = [run for name in OPTIMIZERS for run in cases.runs(name)]


@pytest.mark.parametrize("text, hyperparameters", RUNS, ids=[f"{text}-{len(h)}" for text, h in RUNS])
def test_50_steps_are_those_of_the_reference(text, hyperparameters):
    if "torch" in references.shown(problem.settings(text)[0]):
        pytest.importorskip("torch")
    assert cases.difference(text, hyperparameters) < BOUND


def test_the_table_in_the_readme_is_current():
    """The differences depend on the machine: they have to be below the bound."""
    text = make_table.README.read_text()
    assert f"python -m {make_table.__name__}" in text
    head, *table = make_table.written(text)
    assert tuple(head) == make_table.HEAD
    assert all(0 <= float(row[make_table.MEASURED]) < BOUND for row in table)
    for row in table:
        row[make_table.MEASURED] = ""
    assert table == make_table.rows()
