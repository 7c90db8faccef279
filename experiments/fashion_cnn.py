"""The MNIST network on Fashion-MNIST: one line changed.

Source: Xiao, Rasul and Vollgraf 2017, Fashion-MNIST.
"""

from experiments import mnist_cnn

build = mnist_cnn.build


def get_config():
    config = mnist_cnn.get_config()
    config.dataset = "fashion_mnist"
    config.target = "accuracy>=0.91"
    return config
