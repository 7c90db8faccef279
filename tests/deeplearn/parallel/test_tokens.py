"""Where the token of a run comes from, and which file is refused."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from deeplearn.errors import UserError
from deeplearn.parallel import tokens, wire
from tests.deeplearn.parallel.launch import free_port

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv(tokens.VARIABLE, raising=False)


def meet(workdirs, **kwargs):
    """The tokens' part in a meeting of two processes: their wires, or what they raise."""
    address = f"localhost:{free_port()}"

    def one(rank):
        try:
            return wire.meet(address, rank, 2, kwargs.get("fields", lambda rank: {})(rank), 5.0, workdirs[rank])
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def test_process_0_creates_the_file(tmp_path):
    """It stays for the next start, of that mode whatever the umask."""
    workdir = tmp_path / "runs" / "run"
    before = os.umask(0)
    try:
        for _ in range(2):
            met = meet([workdir, workdir])
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(wire.close, met))
            file = workdir / tokens.FILE
            assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(file.read_text()) == 65
            assert os.listdir(workdir) == [tokens.FILE]
    finally:
        os.umask(before)


def test_the_home_directory(tmp_path, monkeypatch):
    """A shell leaves the ~ in --workdir=~/run as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with tokens.provided("~/run"):
        assert tokens.find("10.0.0.2", "~/run") == tokens.read(tmp_path / "run" / tokens.FILE) is not None
    assert os.listdir(tmp_path) == ["run"]


def test_a_run_that_does_not_start_leaves_nothing(tmp_path):
    lines = meet([tmp_path / "runs" / "run"] * 2, fields=lambda rank: {"lr": rank})
    assert all("lr is 0 on process 0 and 1 on process 1" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_not_shared(tmp_path):
    zero, one = meet([tmp_path / "a", tmp_path / "b"])
    assert "process 1 of 2 did not arrive within 5 s" in zero
    assert one.startswith("process 0 is at localhost:") and one.endswith(
        f", but the token {tmp_path}/b/.token did not appear within 5 s; "
        "choose a --workdir that all processes share, or set DEEPLEARN_TOKEN on all of them"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777, 0o644])
def test_a_file_that_others_can_open(tmp_path, mode):
    (tmp_path / tokens.FILE).write_text(TOKEN)
    (tmp_path / tokens.FILE).chmod(mode)
    for line in meet([tmp_path, tmp_path]):
        assert f"{tmp_path}/.token is of mode {mode:04o} and not 0600, so it cannot be trusted" in line
        assert "; delete it, or set DEEPLEARN_TOKEN to the same random characters on all processes" in line
    assert (tmp_path / tokens.FILE).exists()


def write(content):
    return lambda path: path.write_text(content)


@pytest.mark.parametrize(
    "make, cause",
    [
        (write(""), "has 0 characters of at least 16"),
        (write("0123456789abcde\n"), "has 15 characters of at least 16"),
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("missing"), "Too many levels of symbolic links"),
    ],
)
def test_a_file_that_is_no_token(tmp_path, make, cause):
    path = tmp_path / tokens.FILE
    make(path)
    if not path.is_symlink():
        path.chmod(0o600)
    with pytest.raises(UserError) as error:
        wire.meet(f"localhost:{free_port()}", 0, 2, {}, 1.0, tmp_path)
    assert cause in str(error.value) and "; delete it, or set DEEPLEARN_TOKEN" in str(error.value)


def test_a_file_of_another_user(tmp_path, monkeypatch):
    (tmp_path / tokens.FILE).write_text(TOKEN)
    (tmp_path / tokens.FILE).chmod(0o600)
    user = os.geteuid()
    assert tokens.find("localhost", tmp_path) == TOKEN.encode()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(UserError, match=f"belongs to user {user} and not to {user + 1}, so it cannot be trusted"):
        tokens.find("localhost", tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*run/.token: Not a directory"):
        wire.meet(f"localhost:{free_port()}", 0, 2, {}, 1.0, tmp_path / "file" / "run")


@pytest.mark.parametrize("token", ["", "   ", "0123456789abcde", "  0123456789abcde \n"])
def test_a_short_token(monkeypatch, tmp_path, token):
    monkeypatch.setenv(tokens.VARIABLE, token)
    for rank in range(2):
        with pytest.raises(UserError, match="DEEPLEARN_TOKEN has .* characters of at least 16; set DEEPLEARN_TOKEN to"):
            wire.meet("10.0.0.2:1", rank, 2, {}, 1.0, tmp_path)


def test_the_environment_comes_first(monkeypatch, tmp_path):
    """Then no file is made, nor read."""
    monkeypatch.setenv(tokens.VARIABLE, TOKEN)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / tokens.FILE).write_text("that others can read")
    met = meet([tmp_path / "a", tmp_path / "b"])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(wire.close, met))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("workdir", [None, "gs://bucket/run"])
def test_without_a_token_on_loopback(workdir):
    assert tokens.find("127.0.0.1", workdir) == b""
