import pytest

from deeplearn.training import checkpoints
from tests.deeplearn.training.states import make


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A directory with intact checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("pair")
    with checkpoints.open(directory) as manager:
        for step in (1, 2):
            assert checkpoints.save(manager, step, make(step), {"epoch": step / 2})
    return directory
