"""Compiles the train step of every experiment for one device of a topology; prints what is found as JSON.

A process of its own, since JAX looks for compilers once: `python -m tests.experiments.compiled v5p:1`.
"""

import json
import sys

import jax

from deeplearn import experiment
from deeplearn.data import blank
from deeplearn.experiment import HOME
from deeplearn.parallel import ahead, topologies


def main():
    jax.config.update("jax_platforms", "cpu")
    topology = topologies.load(sys.argv[1])
    found = {}
    for name in sys.argv[2:] or sorted(path.stem for path in HOME.glob("[a-z]*.py")):
        with blank.instead():
            built = experiment.load(name).build(experiment.configure(name, {"mesh": "data:1"}))
        a = ahead.analyse(built, topology, ahead.model_flops(built), activations=False)
        found[name] = {"fits": a.fits, "flops": a.cost and a.cost.flops, "model": a.model_flops, "seconds": a.seconds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
