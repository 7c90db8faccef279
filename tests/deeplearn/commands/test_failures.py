"""What goes wrong around a run: data, disk, a changed model. One line, exit status 2, and nothing is lost."""

import json
import shutil

import pytest


def fails(result, said):
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in err, err


def test_the_best_checkpoint_is_damaged(run, tmp_path):
    """`evaluate` takes the last one and says why; at the end of `train` the last one is not called the best."""
    rough = ("--config.epochs=10", "--config.learning_rate=1.0", "--config.features=(8,)")  # the best is not the last
    train = ("train", "--config=digits_mlp", "--workdir=run", *rough)
    status, out, err = run(*train)
    assert status == 0 and out.startswith("done: best checkpoint at step "), err
    records = {}
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        record = json.loads((path / "record" / "record.json").read_text())["record"]
        records[record["step"]] = path, record["metric"]
    best, path = next((step, path) for step, (path, metric) in records.items() if metric is not None)
    last = max(records)
    assert best < last and f"at step {best}," in out
    status, out, err = run("evaluate", "--workdir=run")
    assert status == 0 and f"step {best}:" in out and "this is its" not in err, err
    for file in (path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * file.stat().st_size)

    status, out, err = run("evaluate", "--workdir=run")
    said = f"this is its last intact checkpoint, of step {last}: the best, of step {best}, is damaged or gone"
    assert status == 0 and f"step {last}:" in out and said in err and "skipped the damaged checkpoint" in err, err
    status, out, err = run(*train)
    assert status == 0 and out.startswith(f"done: last intact checkpoint at step {last}, "), out + err
    assert f"not the best checkpoint: the best, of step {best}, is damaged or gone" in out
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (found["step"], found["checkpoint"]) == (last, "last intact checkpoint")


def no_examples(directory):
    path = directory / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["0"]
    path.write_text(json.dumps(info))


def two_classes(directory):
    (directory / "label.labels.txt").write_text("a\nb\n")
    path = directory / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"
    path.write_text(json.dumps(features))


@pytest.mark.parametrize(
    "experiment, spoil, said",
    [
        ("cifar10_cnn", lambda directory: None, "images are of shape (28, 28, 1), but (32, 32, 3) is expected"),
        ("mnist_cnn", no_examples, "the train split"),
        ("mnist_cnn", two_classes, "has label 2, outside 0 to 1"),
        ("mnist_cnn", lambda directory: shutil.rmtree(directory.parents[1]), "does not exist"),
    ],
    ids=["another shape", "an empty split", "labels out of range", "no data directory"],
)
def test_data_that_does_not_fit(run, prepare, data_dir, experiment, spoil, said):
    spoil(prepare(shape=(28, 28, 1), train=64, test=64))
    command = ("train", f"--config={experiment}", "--workdir=run", "--config.dataset=tiny", "--config.batch_size=8")
    fails(run(*command, TFDS_DATA_DIR=str(data_dir)), said)


def test_a_run_goes_on_when_its_data_is_back(run, prepare, data_dir, tmp_path):
    prepare(shape=(28, 28, 1), train=64, test=64)
    command = ("train", "--config=mnist_cnn", "--workdir=run", "--config.dataset=tiny", "--config.batch_size=8")
    environment = {"TFDS_DATA_DIR": str(data_dir)}
    status, _, err = run(*command, "--config.steps=10", **environment)
    assert status == 0, err
    kept = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    data_dir.rename(tmp_path / "elsewhere")
    fails(run(*command, "--config.steps=10", **environment), "does not exist")
    assert sorted((tmp_path / "run" / "checkpoints").rglob("*")) == kept
    (tmp_path / "elsewhere").rename(data_dir)
    status, out, err = run("evaluate", "--workdir=run", **environment)
    assert status == 0 and "64 examples" in out, err


def test_a_changed_model(run, fragile, tmp_path):
    command = ("train", f"--config={fragile}", "--workdir=run", "--config.steps=20")
    assert run(*command)[0] == 0
    source = fragile.read_text()
    fragile.write_text(source.replace("nn.Dense(10)", "nn.Dense(10, use_bias=False)"))
    fails(run(*command), "was made with other source: source.experiment is")
    fails(run(*command, "--accept=source"), "another model")
    fails(run("evaluate", "--workdir=run"), "experiment changed or is gone")
    fails(run("evaluate", "--workdir=run", "--accept=source"), "another model")
    fragile.write_text(source)
    status, _, err = run("evaluate", "--workdir=run")
    assert status == 0, err


def test_a_full_disk(run, fragile, tmp_path):
    """A limit on the size of a file stands in for it; the run goes on where there is room again."""
    command = ("train", f"--config={fragile}", "--workdir=run", "--config.width=4096", "--config.steps=40")
    fails(run(*command, limit=1 << 20), "checkpoint of step 20")
    status, _, err = run(*command)
    assert status == 0 and "Traceback" not in err, err


def test_a_loss_that_is_no_number(run, fragile, tmp_path):
    """A penalty that grows 25-fold with each step overflows; what was saved before is there to be evaluated."""
    command = ("train", f"--config={fragile}", "--workdir=run", "--config.optimizer=minibatch_sgd")
    fails(run(*command, "--config.learning_rate=6", "--config.l2=1"), "the checkpoint of step 20 is kept")
    status, out, err = run("evaluate", "--workdir=run", "--checkpoint=last")
    assert status == 0 and "360 examples" in out, err
