"""Two workloads, made up so that every score can be worked out by hand."""

import numpy as np
import pytest

from deeplearn.comparison.protocol import Outcome, Result
from deeplearn.comparison.sweep import Sweep
from deeplearn.experiment import Target

GOAL = Target("accuracy", True, 0.8)


def sweep(optimizer, reached, seconds_a_step, rates, tested):
    """Three seeds a rate that reach the target at these evaluations of four, 4 for never; ten steps and an epoch apart.

    At a last rate above 1 they diverge.
    """
    count = len(rates)
    accuracy = np.array([[0.9 if at >= first else 0.5 for at in range(4)] for first in reached * count])  # (R, 4)
    point = np.repeat(np.arange(count), 3)
    loss = 1 - accuracy
    loss[np.array(rates)[point] > 1, 2:] = np.nan
    steps = np.arange(1, 5) * 10
    return Sweep(
        optimizer=optimizer,
        points=tuple({"learning_rate": rate} for rate in rates),
        point=point,
        seeds=np.tile(np.arange(3), count),
        steps=steps,
        examples=steps * 16,
        epochs=steps / 10,
        seconds=np.tile(steps * seconds_a_step, (3 * count, 1)),
        curves={"loss": loss, "validation/loss": loss, "validation/accuracy": accuracy},
        test={"accuracy": np.arange(3) / 10} if tested else {},
        compile_seconds=np.full(3 * count, 0.5),
    )


def result(optimizer, reached, seconds_a_step):
    tuned = sweep(optimizer, reached, seconds_a_step, (0.1, 10.0), tested=False)
    return Result(tuned, {"learning_rate": 0.1}, sweep(optimizer, reached, seconds_a_step, (0.1,), tested=True))


@pytest.fixture
def outcomes():
    return [
        Outcome("one", [result("slow", (1, 1, 1), 0.2), result("quick", (3, 0, 1), 0.1)], GOAL, "validation/accuracy"),
        Outcome("two", [result("slow", (0, 0, 0), 0.2), result("quick", (4, 4, 0), 0.1)], GOAL, "validation/accuracy"),
    ]
