"""A run whose workdir is in a bucket, as people run it; tests/deeplearn/bucket.py stands in for the bucket."""

import json
import re
import subprocess
import sys
import time

import pytest

from deeplearn.files import BUCKETS
from tests.deeplearn import bucket

MAIN = """
import sys
from tests.deeplearn import bucket
bucket.install({root!r})
from deeplearn.__main__ import main
if __name__ == "__main__":
    sys.exit(main(["deeplearn", *sys.argv[1:]]))
"""


@pytest.fixture
def begin(environment, tmp_path):
    """`begin(*arguments)`: the running command, for which gs:// is a folder here."""
    root = tmp_path / "buckets"
    root.mkdir()
    with bucket.served(root) as address:
        (tmp_path / "main.py").write_text(MAIN.format(root=str(root)))

        def begin(*arguments):
            return subprocess.Popen(
                [sys.executable, tmp_path / "main.py", *map(str, arguments)],
                env={**environment, **bucket.environment(address)},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        yield begin


def objects(tmp_path, name):
    """The objects whose name ends so, by name."""
    root = tmp_path / "buckets"
    return {other: bucket.place(root, other).read_text() for other in bucket.names(root) if other.endswith(name)}


def newest(records):
    record = json.loads(max(records.items())[1])["record"]
    return record["step"], record["leaves"]


def steps(metrics):
    return [json.loads(line)["step"] for line in metrics.splitlines()]


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_goes_on(begin, run, fragile, tmp_path):
    """The same bits as on a disk, the same lines in the log, the same pictures; and nothing of it on the disk."""
    command = ("train", f"--config={fragile}", "--config.epochs=6")
    status, _, err = run(*command, "--workdir=local")
    assert status == 0, err

    process = begin(*command, "--workdir=gs://bucket/run")
    while len(objects(tmp_path, "/commit_success.txt")) < 6 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    for again in ("going on from the checkpoint of step", r"going on from the checkpoint of step ([\d,]+) of \1\n"):
        out, err = (process := begin(*command, "--workdir=gs://bucket/run")).communicate(timeout=300)
        assert process.returncode == 0, err
        assert re.search(again, err) and "pictures, metrics and checkpoints: gs://bucket/run" in out

    local = {str(path.relative_to(tmp_path)): path for path in (tmp_path / "local").rglob("*") if path.is_file()}
    kept = {path: file.read_text() for path, file in local.items() if path.endswith("record.json")}
    assert newest(objects(tmp_path, "/record.json")) == newest(kept)
    (lines,) = objects(tmp_path, "/metrics.jsonl").values()
    assert steps(lines) == steps((tmp_path / "local" / "metrics.jsonl").read_text())
    pictures = {path.split("/", 1)[1] for path in local if path.endswith(".png")}
    assert pictures == {name.split("/", 2)[2] for name in bucket.names(tmp_path / "buckets") if name.endswith(".png")}
    assert not any((tmp_path / scheme.rstrip("/")).exists() for scheme in BUCKETS)

    out, err = (process := begin("evaluate", "--workdir=gs://bucket/run")).communicate(timeout=300)
    assert process.returncode == 0 and "360 examples" in out, err


@pytest.mark.parametrize("command", ["train", "evaluate", "compare"])
def test_without_the_client_it_is_one_line(run, tmp_path, command):
    config = [] if command == "evaluate" else ["--config=digits_mlp"]
    status, out, err = run(command, *config, "--workdir=gs://bucket/run", EPATH_USE_TF="false")
    assert status == 2 and err.count("\n") == 1 and err.startswith("error: ")
    assert ("a comparison needs a local --workdir" if command == "compare" else "gs://bucket/run") in err
    assert not (tmp_path / "gs:").exists()
