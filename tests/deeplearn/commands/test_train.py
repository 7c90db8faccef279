import json
import random
import signal
import time

import pytest

from deeplearn import experiment
from deeplearn.errors import UserError
from deeplearn.identity import source as sources
from deeplearn.training import checkpoints, logs, metric_lines, report


def prints(workdir):
    """The fingerprints of every array in the newest checkpoint."""
    newest = max((workdir / "checkpoints").glob("[0-9]*-????????"), key=lambda path: path.name)
    record = json.loads((newest / "record" / "record.json").read_text())["record"]
    return record["step"], record["leaves"]


def records(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def without_time(records):
    return [{name: x for name, x in record.items() if name not in ("seconds", "crc")} for record in records]


def test_digits(run, tmp_path):
    """The main job: what it prints, and all that it leaves in the workdir."""
    status, out, err = run("train", "--config=digits_mlp", "--workdir=run", "--config.epochs=12")
    assert status == 0, err
    assert "test" in out and "accuracy 0.9" in out and "(360 examples)" in out
    workdir = tmp_path / "run"
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        *("manifest.json", "metrics.jsonl", "tensorboard", "checkpoints", "parameters.txt", "evaluation.json"),
        *("network.png", "samples.png", "curves.png", "confusion.png", "wrong.png"),
    }
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert manifest["config"]["epochs"] == 12 and manifest["seed"] == 0 and "--config=" in manifest["command"]
    lines = records(workdir)
    assert lines[-1]["validation/accuracy"] > 0.9 and lines[-1]["loss"] < lines[0]["loss"]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})

    status, out, err = run("evaluate", "--workdir=run")
    assert status == 0, err
    found = json.loads((workdir / "evaluation.json").read_text())["test"]["accuracy"]
    assert f"{found:.4f}" in out and "accuracy, 9" in out and "360 examples" in out
    status, out, _ = run("evaluate", "--workdir=run", "--split=validation", "--checkpoint=last")
    assert status == 0 and f"validation, 144 examples, step {lines[-1]['step']}:" in out
    assert f"{lines[-1]['validation/accuracy']:.4f}" in out

    status, out, err = run("train", "--config=digits_mlp", "--workdir=run", "--config.epochs=12")
    assert status == 0 and records(workdir) == lines  # nothing is left to do, and nothing is lost


def test_sigterm(start, run, fragile, tmp_path):
    """Ends the chunk, saves, says how to go on, however often it is told to meanwhile."""
    command = ("train", f"--config={fragile}", "--config.epochs=300")
    process = start(*command, "--workdir=a")
    while len(records(tmp_path / "a")) < 3 and process.poll() is None:
        time.sleep(0.02)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "to go on: python -m deeplearn train" in err and "Traceback" not in err
    step, _ = prints(tmp_path / "a")
    assert step == records(tmp_path / "a")[-1]["step"] < 6000


@pytest.mark.slow
def test_kill_and_resume_is_exact(start, run, fragile, tmp_path):
    """Ten times kill -9, half of them while it starts or stops, half while it trains: the same bits in the end."""
    command = ("train", f"--config={fragile}", "--config.epochs=100")
    status, _, err = run(*command, "--workdir=whole")
    assert status == 0, err
    choose = random.Random(0)
    for attempt in range(10):
        process = start(*command, "--workdir=broken")
        if attempt % 2:
            before = len(records(tmp_path / "broken"))
            while len(records(tmp_path / "broken")) <= before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(choose.uniform(0, 0.3))
        else:
            time.sleep(choose.uniform(0, 5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was not done before
    assert 0 < records(tmp_path / "broken")[-1]["step"] < records(tmp_path / "whole")[-1]["step"]
    status, _, err = run(*command, "--workdir=broken")
    assert status == 0, err
    assert prints(tmp_path / "broken") == prints(tmp_path / "whole")
    assert without_time(records(tmp_path / "broken")) == without_time(records(tmp_path / "whole"))


BASE = ("train", "--config=digits_mlp", "--workdir=run")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("trian",), "unknown command 'trian'; did you mean train?"),
        (
            ("train", "--config=digits_mpl", "--workdir=run"),
            "unknown experiment 'digits_mpl'; did you mean digits_mlp?",
        ),
        ((*BASE, "--config.batchsize=3"), "unknown config field 'batchsize'; did you mean batch_size"),
        ((*BASE, "--config.batch_size=many"), "--config.batch_size=many"),
        ((*BASE, "--config.batch_size=0"), "config.batch_size is 0; it must be at least 1"),
        ((*BASE, "--config.batch_size=1294"), "and there are 1293 training examples; --config.batch_size=1293 fits"),
        ((*BASE, "--config.dropout=1.5"), "config.dropout is 1.5; it must be in [0, 1)"),
        ((*BASE, "--config.epochs=nan"), "config.epochs is nan; it must be a finite number"),
        ((*BASE, "--config.epochs=1e300"), "a run has at most 2147483647 steps, and these are more"),
        ((*BASE, "--config.seed=4294967296"), "config.seed is 4294967296; it must be at most 4294967295"),
        ((*BASE, "--config.features=(8,-1)"), "config.features is (8, -1); it must be a list"),
        (
            (*BASE, "--config.schedule=cosine(warmup=1e999)"),
            "schedule cosine: warmup=inf is out of range",
        ),
        ((*BASE, "--config.target=accuracy>=1e999"), "the number in target 'accuracy>=1e999' is inf"),
        ((*BASE, "--process_timeout=nan"), "--process_timeout is nan; it must be a finite number"),
        ((*BASE, "--config.optimizer=adamm"), "unknown optimizer 'adamm'; did you mean"),
        ((*BASE, "--config.optimizer=adam(b3=1)"), "unknown setting of optimizer adam 'b3'"),
        ((*BASE, "--config.schedule=cosin"), "unknown schedule 'cosin'; did you mean cosine?"),
        ((*BASE, "--config.dataset=digit"), "unknown data set 'digit'; did you mean digits?"),
        ((*BASE, "--config.precision=float16"), "unknown precision 'float16'; did you mean"),
        ((*BASE, "--config.mesh=data:64"), "mesh data:64 needs 64 devices"),
        ((*BASE, "--config.target=accuracy"), "is not of the form METRIC>=NUMBER"),
        ((*BASE, "--config.target=f1>=0.5"), "'f1' is not evaluated; there are: accuracy"),
        ((*BASE, "--wordkir=x"), "Unknown command line flag 'wordkir'. Did you mean: workdir"),
        (("train", "--config=digits_mlp"), "--workdir"),
        (("evaluate", "--workdir=nothing"), "nothing is not a run"),
        ((*BASE, "stray"), "unexpected argument 'stray'"),
    ],
)
def test_mistakes(run, tmp_path, arguments, said):
    """One line with the cause and the remedy, and exit status 2."""
    status, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and said in lines[0], err
    assert "Traceback" not in err and not (tmp_path / "run").exists()


MISLED = """
import numpy as np
from deeplearn.config import base_config
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import wire
from deeplearn.models.mlp import MLP
from deeplearn.tasks.classification import classification


def get_config():
    return base_config(steps=12, batch_size=16, eval_every=4, checkpoint_every=4, log_every=4, learning_rate=0.1)


def build(config):
    def split(shift):
        labels = np.arange(96, dtype=np.int32) % 3
        images = np.eye(3, dtype=np.float32)[labels].reshape(-1, 3, 1, 1)
        return Arrays({"image": images, "label": (labels + shift) % 3})

    data = Data("misled", split(0), split(1), split(0), ("a", "b", "c"))
    return wire(config, classification(MLP((8,), 3), (3, 1, 1), 3), data)
"""


@pytest.fixture
def misled(command, tmp_path, monkeypatch):
    """`misled(**fields)`: trains, or goes on, in tmp_path / "run"; what the report at the end is told.

    The labels of validation are wrong ones, so that the first of three checkpoints is the best.
    """
    train = command("train", "--workdir=run", "--accept=config")
    (tmp_path / "misled.py").write_text(MISLED)
    source = sources.collect(tmp_path / "misled.py")
    told = []
    monkeypatch.setattr(report, "before", lambda *arguments: None)
    monkeypatch.setattr(report, "after", lambda *arguments: told.append(arguments) or "done")

    def misled(**fields):
        (tmp_path / "run").mkdir(exist_ok=True)
        train.run(source, experiment.configure(source, {"mesh": "data:1", **fields}), tmp_path / "run")
        return told[-1]

    return misled


def test_the_end_of_a_run_is_told_of_its_best_checkpoint(misled, tmp_path):
    workdir, _, _, best, progress, reason = misled()
    assert (workdir, best.step, reason) == (tmp_path / "run", 4, "done")
    assert [line["step"] for line in records(tmp_path / "run")] == [4, 8, 12]


def test_a_log_goes_on_from_the_checkpoint(misled, tmp_path):
    """What an earlier attempt wrote beyond it is dropped; what is before it stays in the file."""
    misled()
    lines = records(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write(metric_lines.encode(16, {"loss": 1.0}))
    misled()
    assert records(tmp_path / "run") == lines and not (tmp_path / "run" / "metrics.jsonl.1").exists()


def test_a_start_whose_checkpoint_does_not_fit_is_not_recorded(misled, tmp_path):
    """Another optimizer, accepted as a config, has another state."""
    misled()
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="is of another model: "):
        misled(optimizer="momentum")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_what_is_logged_is_in_the_workdir_before_the_checkpoint(misled, monkeypatch):
    """A bucket gets lines from time to time; a run that goes on from the checkpoint must not miss any."""
    order = []
    opened, save = logs.open_logs, checkpoints.save
    monkeypatch.setattr(
        logs, "open_logs", lambda *arguments: opened(*arguments)._replace(flush=lambda: order.append("flush"))
    )
    monkeypatch.setattr(checkpoints, "save", lambda *arguments: order.append("save") or save(*arguments))
    misled()
    assert order == ["flush", "save"] * 3


def test_another_config_in_the_same_workdir(run, fragile, tmp_path):
    command = ("train", f"--config={fragile}", "--workdir=run", "--config.steps=20")
    assert run(*command)[0] == 0
    before = prints(tmp_path / "run")
    status, _, err = run(*command, "--config.width=32")
    assert status == 2 and "width" in err and "--workdir" in err and "Traceback" not in err
    assert prints(tmp_path / "run") == before


def test_two_runs_in_one_workdir(start, run, fragile, tmp_path):
    command = ("train", f"--config={fragile}", "--workdir=run", "--config.epochs=1000")
    first = start(*command)
    while not records(tmp_path / "run") and first.poll() is None:
        time.sleep(0.02)
    status, _, err = run(*command)
    assert status == 2 and str(first.pid) in err and "Traceback" not in err
    first.kill()
    first.communicate()


def test_the_placement_is_shown_before_a_run_on_several_devices(run, fragile):
    flags = ("train", f"--config={fragile}", "--workdir=run", "--config.steps=1", "--config.batch_size=32")
    status, _, err = run(*flags, "--config.mesh=fsdp:2", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    lines = err.splitlines()
    assert status == 0, err
    assert ["path", "shape", "axes", "bytes", "a", "device", "role"] in [line.split() for line in lines], err
    assert any(line.startswith("params/") and line.endswith("kernel 0 -> 1") for line in lines), err
    assert any(line.startswith("opt_state/") for line in lines) and any(line.startswith("total") for line in lines)
    status, _, err = run("evaluate", "--workdir=run")
    assert status == 2 and "mesh fsdp:2 needs 2 devices, there are 1" in err
    status, out, err = run("evaluate", "--workdir=run", "--mesh=data:1")
    assert status == 0 and "360 examples" in out, err
    status, _, err = run(*flags[:2], "--workdir=one", *flags[3:], "--config.mesh=data:1")
    assert status == 0 and "bytes a device" not in err
    assert "weight decay applies to 2 kernels and 0 embeddings, not to 4 vectors" in err


def test_profile(run, fragile, tmp_path):
    status, _, err = run("train", f"--config={fragile}", "--workdir=run", "--config.steps=60", "--profile")
    assert status == 0, err
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
