import pytest

from tests.deeplearn.parallel import launch


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """One cache of compiled programs and one data directory for every process."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def start(home, tmp_path):
    with launch.starter(home, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def divided(home, tmp_path_factory):
    """The workdir of a run in two processes, the state divided over them, and what they said."""
    directory = tmp_path_factory.mktemp("divided")
    with launch.starter(home, directory) as start:
        done = launch.finished(start(2, *launch.RUN, "--config.mesh=fsdp:-1", "--workdir=run"))
    return directory / "run", done
