"""Twelve optimizers on five workloads, at sizes that two CPU cores bear.

Eight quasi-random points for each optimizer over all hyperparameters of its search space, one seed each; the point that
reaches the target first runs again with five fresh seeds. The targets of the first two are those of their experiments;
those of the shorter three were set before the study, at what Adam with the experiment's rate reaches in half to two
thirds of the 300 steps.
Command: python -m deeplearn compare --study=experiments/studies/two_cores.py --workdir=runs/two_cores
"""


def get_study():
    return {
        "workloads": {
            "digits_mlp": {},
            "sequence_rnn": {},
            "mnist_cnn": {"steps": 300, "eval_every": 30, "target": "accuracy>=0.96"},
            "shakespeare_rnn": {"steps": 300, "eval_every": 30, "target": "loss<=2.05"},
            "cifar10_cnn": {"channels": (16, 32, 64), "steps": 300, "eval_every": 30, "target": "accuracy>=0.48"},
        },
        "optimizers": (
            "minibatch_sgd",
            "momentum",
            "nesterov",
            "adagrad",
            "rmsprop",
            "adam",
            "adamw",
            "nadam",
            "radam",
            "lion",
            "muon",
            "schedule_free_adamw",
        ),
        "points": 8,
        "seeds": 1,
        "reruns": 5,
    }
