"""Two starts at the same moment in one directory: one runs, and the other one is refused in one line."""

import pytest

from deeplearn.training import logs, manifest


def outcomes(processes):
    """(status, standard error) of each process."""
    return [(process.returncode, err) for process in processes for _, err in [process.communicate(timeout=300)]]


@pytest.mark.slow
def test_two_runs_with_different_seeds(start, fragile, tmp_path):
    seeds = (3, 4)
    command = ("train", f"--config={fragile}", "--workdir=run", "--config.steps=20", "--config.eval_every=20")
    ended = outcomes([start(*command, f"--config.seed={seed}") for seed in seeds])
    assert sorted(status for status, _ in ended) == [0, 2], ended
    (refused,) = (err for status, err in ended if status == 2)
    errors = [line for line in refused.splitlines() if line.startswith("error: ")]
    # The other one is at work, or has ended, if this one started late.
    assert len(errors) == 1 and ("is at work in run" in errors[0] or "config.seed is" in errors[0]), refused
    assert "choose another --workdir" in errors[0] and "Traceback" not in refused
    winner = next(seed for seed, (status, _) in zip(seeds, ended, strict=True) if status == 0)
    written = manifest.read(tmp_path / "run")
    assert written["config"]["seed"] == written["seed"] == winner and written["resumed"] == []
    assert [record["step"] for record in logs.read_metrics(tmp_path / "run")][-1] == 20
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) >= 1
