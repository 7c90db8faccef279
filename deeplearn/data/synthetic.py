"""Data sets that are computed."""

import numpy as np

from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data, check


def sequences(examples: int = 1000, length: int = 10, seed: int = 0, noise: float = 0.05) -> Data:
    """Short time series, the next value to be predicted: {"inputs": (length, 1), "targets": (1,)}, float32.

    Each is a mixture of two sines with amplitudes, frequencies and phases of its own, and white noise,

        x_t = sum_i a_i sin(w_i t + p_i) + noise * e_t,   i = 1, 2;   e_t ~ N(0, 1)
        a_i ~ U(0.3, 1),   w_i ~ U(0.2, 1.2),   p_i ~ U(0, 2 pi)

    so that repeating the last value is a poor guess, and no guess can have a mean squared error below
    noise^2. The first 70 % are for training, the next 15 % for validation, the last 15 % for the test.

    >>> data = sequences()
    >>> len(data.train), len(data.validation), len(data.test), data.spec["inputs"].shape
    (700, 150, 150, (10, 1))
    """
    random = np.random.RandomState(seed)
    amplitude = random.uniform(0.3, 1.0, (examples, 2, 1))
    frequency = random.uniform(0.2, 1.2, (examples, 2, 1))
    phase = random.uniform(0.0, 2 * np.pi, (examples, 2, 1))
    waves = amplitude * np.sin(frequency * np.arange(length + 1) + phase)  # (examples, 2, length + 1)
    values = waves.sum(axis=1) + noise * random.standard_normal((examples, length + 1))
    values = values.astype(np.float32)

    def part(start: int, stop: int) -> Arrays:
        return Arrays(
            {
                "inputs": values[start:stop, :length, None],  # (N, length, 1)
                "targets": values[start:stop, length:],  # (N, 1)
            }
        )

    first, second = round(0.70 * examples), round(0.85 * examples)
    return check(Data("sequences", part(0, first), part(first, second), part(second, examples)))
