"""The recipe that the CIFAR-10 experiments share, so that their architectures compare.

Data: CIFAR-10, a tenth of the 50,000 training images held out for validation; each channel less its mean, over its
standard deviation; in training a random mirror and a random crop after padding by 4 (He et al. 2016, section 4.2).
"""

from deeplearn.config import base_config
from deeplearn.data import augment, datasets
from deeplearn.experiment import wire
from deeplearn.tasks import transformations
from deeplearn.tasks.classification import classification


def get_config(**fields):
    return base_config(
        **{
            "dataset": "cifar10",
            "augment": True,
            "optimizer": "adamw",  # at its default, 0.001
            "schedule": "cosine(warmup=0.05)",
            "batch_size": 64,
            "epochs": 10.0,
            "target": "accuracy>=0.7",  # our own: what the CNN passes in its third epoch
            **fields,
        }
    )


def build(config, model):
    """The experiment of a Flax model that maps normalised images to logits."""
    data = datasets.load(config.dataset, validation=0.1, image_shape=(32, 32, 3))
    task = classification(model, (32, 32, 3), len(data.classes))
    task = transformations.preprocess(task, augment.normalize(augment.CIFAR10_MEAN, augment.CIFAR10_STD))
    if config.augment:
        task = transformations.augment(task, augment.compose(augment.random_flip, augment.random_crop(4)))
    return wire(config, task, data, model)
