"""The commands under settings of JAX from the environment."""

import json

import pytest

EXPERIMENT = '''"""A small network on digits or a GPT that learns the alphabet."""

import numpy as np

from deeplearn.config import base_config
from deeplearn.data import augment, datasets, text, tokenizers
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import wire
from deeplearn.models.cnn import CNN
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.models.mlp import MLP
from deeplearn.tasks import transformations
from deeplearn.tasks.classification import classification
from deeplearn.tasks.language_modelling import language_modelling


def get_config():
    return base_config(model="", learning_rate=0.01, batch_size=16, steps=40, log_every=20, ema=0.5, mesh="data:1")


def build(config):
    if config.model in ("cnn", "mlp"):
        model = CNN((4,), 16, batch_norm=True) if config.model == "cnn" else MLP((8,))
        task = transformations.preprocess(classification(model, (8, 8, 1), 10), augment.scale(-1, 1))
        task = transformations.augment(task, augment.compose(augment.random_flip, augment.random_crop(1)))
        return wire(config, task, datasets.load("digits", validation=0.1), model)
    tokenizer = tokenizers.characters("abcdef")
    source = Arrays({"tokens": text.windows(tokenizer.encode("abcdef" * 200).astype(np.uint8), 11)})
    model = GPT(Architecture(vocabulary=6, length=11, width=32, depth=2, heads=2, rows_multiple=8))
    task = language_modelling(model, 11)
    return wire(config, task, Data("alphabet", source, source, source), model, tokenizer=tokenizer)
'''
MODES = {
    "all that check": {
        "JAX_DEBUG_NANS": "1",
        "JAX_DEBUG_INFS": "1",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    },
    "x64": {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_TRANSFER_GUARD": "log"},
}


@pytest.fixture
def command(run, tmp_path):
    """command(mode, *arguments): what it prints."""
    (tmp_path / "small.py").write_text(EXPERIMENT)

    def command(mode, *arguments):
        status, out, err = run(*arguments, **MODES[mode])
        assert status == 0 and "Traceback" not in err, err
        return out

    return command


@pytest.mark.parametrize("model", ["cnn", "gpt"])
def test_train_and_evaluate(command, tmp_path, model):
    losses = {}
    for mode in MODES:
        workdir = f"{model} {mode}"
        command(mode, "train", "--config=small.py", f"--workdir={workdir}", f"--config.model={model}")
        losses[mode] = json.loads((tmp_path / workdir / "evaluation.json").read_text())["test"]["loss"]
        assert f"{losses[mode]:.4f}" in command(mode, "evaluate", f"--workdir={workdir}")
    assert losses["x64"] == pytest.approx(losses["all that check"], rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_generate_and_compare(command, tmp_path, mode):
    command(mode, "train", "--config=small.py", "--workdir=gpt", "--config.model=gpt")
    writes = ("generate", "--workdir=gpt", "--prompt=cd", "--tokens=20")
    assert command(mode, *writes, "--temperature=0") == ("abcdef" * 4)[2:24] + "\n"
    command(mode, *writes, "--top_k=3", "--top_p=0.9")
    few = ("--config.steps=4", "--optimizers=adam", "--learning_rates=2", "--seeds=1", "--reruns=1")
    command(mode, "compare", "--config=small.py", "--config.model=mlp", "--workdir=study", *few)
    assert (tmp_path / "study" / "report.html").exists()


@pytest.mark.parametrize(
    "arguments, settings, said",
    [
        (
            ("train", "--config=digits_mlp", "--config.mesh=data:2"),
            {"JAX_DISABLE_JIT": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            "jax_disable_jit is for one device, not 2; unset it, or use the mesh data:1",
        ),
        (("compare", "--config=digits_mlp"), {"JAX_DISABLE_JIT": "1"}, "compare trains in compiled programs, which"),
        (("compare", "--config=digits_mlp"), {"JAX_DEFAULT_PRNG_IMPL": "rbg"}, "by jax_default_prng_impl=rbg a run"),
    ],
)
def test_what_does_not_work_is_one_line(run, arguments, settings, said):
    status, _, err = run(*arguments, "--workdir=a", **settings)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and said in lines[0] and "Traceback" not in err, err
