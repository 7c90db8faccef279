"""Twelve optimizers on five workloads, at sizes that two CPU cores bear.

Eight quasi-random points for each optimizer over all hyperparameters of its search space, one seed each; the point that
reaches the target first runs again with five fresh seeds. The targets were set before the study: about nine tenths of
the way from chance to what the experiment itself reaches, within the budget of a run.
Command: python -m deeplearn compare --study=experiments/studies/two_cores.py --workdir=runs/two_cores
"""


def get_study():
    return {
        "workloads": {
            "digits_mlp": {},
            "sequence_rnn": {},
            "mnist_cnn": {"epochs": 1.0, "eval_every": 100, "target": "accuracy>=0.975"},
            "shakespeare_rnn": {"steps": 500, "eval_every": 50, "learning_rate": None, "target": "loss<=2.0"},
            "cifar10_cnn": {"channels": (16, 32, 64), "steps": 400, "eval_every": 50, "target": "accuracy>=0.5"},
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
