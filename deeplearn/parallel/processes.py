"""Which of a run's processes this one is."""

import jax


def is_main() -> bool:
    """Whether this process writes the logs and pictures: the first of the run, or the only one."""
    return jax.process_index() == 0
