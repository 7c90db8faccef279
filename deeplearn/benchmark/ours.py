"""The project's own contender: the program that `train` runs, data on the device and gathered there."""

import jax
import optax

from deeplearn.benchmark.cases import LEARNING_RATE, Case
from deeplearn.benchmark.contender import Contender
from deeplearn.config import base_config
from deeplearn.data import augment
from deeplearn.data.sources import Arrays
from deeplearn.data.splits import Data
from deeplearn.experiment import Experiment, wire
from deeplearn.models.cnn import CNN
from deeplearn.models.gpt import GPT, Architecture
from deeplearn.models.mobilenet import MobileNet
from deeplearn.models.resnet import ResNet
from deeplearn.models.rnn import SequenceRNN
from deeplearn.models.transformer import VisionTransformer
from deeplearn.tasks.classification import classification
from deeplearn.tasks.language_modelling import language_modelling
from deeplearn.tasks.regression import regression
from deeplearn.tasks.transformations import preprocess
from deeplearn.training import program as programs

MODELS = {
    "cnn": CNN(channels=(32, 64), hidden=128, classes=10),
    "rnn": SequenceRNN(features=32, cell="rnn", outputs=1),
    "lstm": SequenceRNN(features=256, cell="lstm", outputs=1),
    "transformer": VisionTransformer(patch=4, width=128, depth=4, heads=4, classes=10),
    "resnet": ResNet(depth=20, classes=10),
    "mobilenet": MobileNet(classes=10),
    "gpt": GPT(Architecture(vocabulary=65, length=64, width=128, depth=4, heads=4, bias=False)),
}


def experiment(case: Case) -> Experiment:
    """The case as an experiment file wires it, on one device."""
    arrays = Arrays(case.data(case.examples))
    data = Data("synthetic", train=arrays, validation=arrays, test=arrays)  # nothing here is ever evaluated
    model = MODELS[case.model]
    if "image" in data.spec:
        task = preprocess(classification(model, data.spec["image"].shape, 10), augment.scale(-1.0, 1.0))
    elif "tokens" in data.spec:
        task = language_modelling(model, data.spec["tokens"].shape[0] - 1)
    else:
        task = regression(model, data.spec["inputs"].shape)
    config = base_config(optimizer="adam", learning_rate=LEARNING_RATE, batch_size=case.batch_size, mesh="data:1")
    return wire(config, task, data, model)


def candidates(case: Case) -> list[Contender]:
    """Chunk after chunk, each as long as those of `train`, the metrics fetched after each."""
    wired = experiment(case)
    program = programs.build(wired)
    state, step = program.init(), 0

    def run(steps):
        nonlocal state, step
        stop = step + steps
        while step < stop:
            length = min(wired.log_every, stop - step)
            state, metrics = program.chunk(state, program.feed.data(step, length), length)
            metrics = jax.device_get(metrics)
            step += length
        return float(metrics["loss"])

    return [Contender(run, optax.tree.size(state.params))]
