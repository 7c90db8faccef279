import subprocess

from deeplearn.training import start


def test_git(tmp_path):
    def git(*arguments):
        names = ["-c", "user.name=n", "-c", "user.email=e@x"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert start.git(tmp_path) is None
    git("init")
    assert start.git(tmp_path) is None  # nothing committed
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    assert start.git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "b").write_text("1")
    assert not start.git(tmp_path)["dirty"]
    (tmp_path / "a").write_text("2")
    assert start.git(tmp_path)["dirty"]


def test_no_git_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start.git(tmp_path) is None
