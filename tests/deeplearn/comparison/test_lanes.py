"""How many runs share a program: arithmetic alone, without a program; test_sweep.py trains."""

from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest
from jax.experimental import multihost_utils

from deeplearn.comparison import lanes


@pytest.mark.parametrize(
    "runs, room, tried",
    [
        (34, 40, [40]),  # fits exactly
        (34, 39, [40, 24]),  # two groups of 17, not one of 32 and one of 2
        (34, 23, [40, 16]),  # three groups of 12
        (34, 8, [40, 8]),
        (34, 1, [40, 8]),  # fewer than one a device there are not
        (5, 1, [8]),
    ],
)
def test_the_fewest_groups_that_fit_are_alike(monkeypatch, runs, room, tried):
    """A lane is a byte; eight devices."""
    compiled = []
    monkeypatch.setattr(lanes, "forecast", lambda program: program)
    monkeypatch.setattr(lanes, "room", lambda: room)
    assert lanes.choose(lambda count: compiled.append(count) or count, runs) == (tried[-1],) * 3
    assert compiled == tried


def test_the_devices_of_a_machine_divide_its_memory(monkeypatch):
    memory = SimpleNamespace(total=1600, available=480)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert (lanes.room(), lanes.free()) == (0.5 * 1600 / 8, 480 / 8)


def test_an_accelerator_has_memory_of_its_own(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000, "bytes_in_use": 300})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert (lanes.room(), lanes.free()) == (800, 700)


def test_processes_agree_on_the_least(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda value: np.array([value, 3.0]))
    assert [lanes.agreed(value) for value in (2.0, 5.0)] == [2.0, 3.0]
