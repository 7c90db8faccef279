"""The optimizers by name: what makes each, its defaults, its search space, its source.

A hyperparameter whose default is a float is a leaf of the optimizer's state, and a sweep can vary it; a whole
number, a truth value or a string shapes the program, and is fixed when the optimizer is made.

A default rate is near the best of a sweep on the network of experiments/digits_mlp.py (batch 64, 10 epochs,
or 150 steps of the whole set). Adam and its closest kin keep the paper's 1e-3: after the 30 epochs that the
experiment takes it is within a point of the best.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optax
from optax import contrib

from deeplearn.optimizers import adaptive, algorithms, layers


class Range(NamedTuple):
    """An interval to search evenly: in x ("linear"), in log x ("log") or in log(1 - x) ("reverse_log")."""

    low: float
    high: float
    scale: str = "log"

    def at(self, u):
        """The value at the fraction u of the way from low to high.

        >>> round(Range(1e-4, 1e-2).at(0.5), 6)
        0.001
        >>> round(Range(0.9, 0.999, "reverse_log").at(0.5), 6)
        0.99
        """
        low, high = self.low, self.high
        if self.scale == "linear":
            return low + (high - low) * u
        if self.scale == "reverse_log":
            return 1 - (1 - low) * ((1 - high) / (1 - low)) ** u
        return low * (high / low) ** u


def trained(state, params):
    return params


class Spec(NamedTuple):
    """An optimizer of the table.

    Fields:
      make: `(learning_rate, **hyperparameters) -> optax.GradientTransformation`, without weight_decay.
      learning_rate: the default; about 1 where the optimizer finds its own.
      summary, source: a line for people, and the paper.
      hyperparameters: the defaults, without the learning rate.
      space: the Range of each hyperparameter that is worth a search, among them `learning_rate`.
      batch_size: None for the experiment's, 1, or "full" for the whole training set.
      evaluation_params: `(state, params) -> params`, the parameters to evaluate.
      by_role: `make` takes `roles`, a function from the parameters to their roles.
      own_decay: `make` takes weight_decay, too; else w loses rate * weight_decay * w beside the step.
      note: how it differs from its source, and whose form that is.
    """

    make: Callable[..., optax.GradientTransformation]
    learning_rate: float
    summary: str
    source: str
    hyperparameters: dict[str, Any] = {}
    space: dict[str, Range] = {}
    batch_size: int | str | None = None
    evaluation_params: Callable[[Any, Any], Any] = trained
    by_role: bool = False
    own_decay: bool = False
    note: str = ""


ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
BETAS = {"b1": Range(0.8, 0.98, "reverse_log"), "b2": Range(0.9, 0.9999, "reverse_log")}
DECAY = {"weight_decay": Range(1e-4, 1.0)}
MOMENTUM = {"momentum": Range(0.8, 0.99, "reverse_log")}
FREE = {"learning_rate": Range(0.1, 10.0)}

# fmt: off
ENTRIES = {
    "gradient_descent": Spec(
        optax.sgd, 0.3, "the gradient of the whole training set", "Cauchy 1847", batch_size="full"),
    "sgd": Spec(
        optax.sgd, 0.01, "the gradient of one example", "Robbins and Monro 1951", batch_size=1),
    "minibatch_sgd": Spec(
        optax.sgd, 0.2, "the gradient of a batch", "Goodfellow, Bengio and Courville 2016, algorithm 8.1"),
    "momentum": Spec(
        optax.sgd, 0.05, "heavy ball: v <- momentum v + g, w <- w - rate v", "Polyak 1964",
        {"momentum": 0.9}, MOMENTUM),
    "nesterov": Spec(
        partial(optax.sgd, nesterov=True), 0.05, "momentum that looks ahead for its gradient",
        "Nesterov 1983; Sutskever et al. 2013", {"momentum": 0.9}, MOMENTUM,
        note="The parameters are those ahead, where gradients are taken, as in PyTorch."),
    "adagrad": Spec(
        adaptive.adagrad, 0.1, "g over the root of the sum of all g^2", "Duchi, Hazan and Singer 2011",
        {"initial_accumulator_value": 0.1, "eps": 1e-7},
        note="The sum starts at initial_accumulator_value, as in Keras; in the paper at 0."),
    "adadelta": Spec(
        optax.adadelta, 1.0, "RMSProp whose rate is the running size of the updates", "Zeiler 2012",
        {"rho": 0.9, "eps": 1e-6}, {"rho": Range(0.8, 0.99, "reverse_log")}),
    "rmsprop": Spec(
        optax.rmsprop, 2e-3, "g over its running root mean square", "Tieleman and Hinton 2012, lecture 6.5",
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False, "centered": False},
        {"decay": Range(0.8, 0.999, "reverse_log")},
        note="eps, which the lecture does not have, is added to the root, as in PyTorch."),
    "adam": Spec(
        adaptive.adam, 1e-3, "momentum over the running root mean square", "Kingma and Ba 2015, algorithm 1",
        {**ADAM, "bias_correction": True}, BETAS),
    "adamax": Spec(
        optax.adamax, 5e-3, "Adam with the infinity norm", "Kingma and Ba 2015, algorithm 2", ADAM, BETAS,
        note="eps, which the paper does not have, is added to |g|, as in PyTorch."),
    "nadam": Spec(
        adaptive.nadam, 1e-3, "Adam with Nesterov's momentum, which rises by a schedule", "Dozat 2016",
        {**ADAM, "momentum_decay": 4e-3}, BETAS),
    "amsgrad": Spec(
        adaptive.amsgrad, 1e-3, "Adam whose second moment never falls", "Reddi, Kale and Kumar 2018",
        ADAM, BETAS,
        note="The bias of both moments is corrected, as in PyTorch; the paper corrects neither."),
    "adamw": Spec(
        adaptive.adam, 1e-3, "Adam with decoupled weight decay", "Loshchilov and Hutter 2019",
        {**ADAM, "bias_correction": True, "weight_decay": 1e-2}, BETAS | DECAY,
        note="The decay is multiplied by the learning rate, as in PyTorch; in the paper by the schedule "
        "alone."),
    "nadamw": Spec(
        optax.nadam, 1e-3, "NAdam of constant momentum with decoupled weight decay",
        "Dozat 2016; Dahl et al. 2023, section 6", {**ADAM, "weight_decay": 1e-2}, BETAS | DECAY,
        note="The bias of the momentum is corrected as by Dozat; Dahl et al. divide all of it by 1 - b1^t."),
    "adamaxw": Spec(
        optax.adamax, 5e-3, "Adamax with decoupled weight decay",
        "Loshchilov and Hutter 2019", {**ADAM, "weight_decay": 1e-2}, BETAS | DECAY,
        note="eps as in adamax, decay as in adamw."),
    "radam": Spec(
        adaptive.radam, 5e-3, "Adam, rectified while its second moment is uncertain", "Liu et al. 2020",
        {**ADAM, "threshold": 5.0}, BETAS,
        note="The threshold is that of the authors' code and of PyTorch, 5; in the paper 4."),
    "adabelief": Spec(
        optax.adabelief, 1e-3, "Adam with the gradient's variance about its mean", "Zhuang et al. 2020",
        {"b1": 0.9, "b2": 0.999, "eps": 1e-16, "eps_root": 1e-16}, BETAS,
        note="eps_root is the eps that the paper adds to the second moment in every step."),
    "yogi": Spec(
        adaptive.yogi, 1e-2, "Adam whose second moment moves by bounded steps", "Zaheer et al. 2018",
        {"b1": 0.9, "b2": 0.999, "eps": 1e-3}, BETAS,
        note="The bias is corrected and the second moment starts at 1e-6, as in the authors' code."),
    "lion": Spec(
        partial(optax.lion, weight_decay=0.0), 1e-3, "the sign of a double momentum", "Chen et al. 2023",
        {"b1": 0.9, "b2": 0.99, "weight_decay": 1e-3}, BETAS | DECAY),
    "signum": Spec(
        optax.signum, 1e-3, "the sign of the momentum", "Bernstein et al. 2018, signSGD",
        {"beta": 0.9}, {"beta": Range(0.8, 0.99, "reverse_log")}),
    "lamb": Spec(
        layers.lamb, 5e-3, "Adam at each layer's own scale, for large batches",
        "You et al. 2020", {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.0}, BETAS,
        by_role=True, own_decay=True,
        note="Arrays whose norm or update is 0 take the learning rate itself."),
    "lars": Spec(
        layers.lars, 2.0,
        "momentum at each layer's own scale, for large batches", "You, Gitman and Ginsburg 2017",
        {"momentum": 0.9, "trust_coefficient": 1e-3, "weight_decay": 0.0}, MOMENTUM, by_role=True, own_decay=True,
        note="Vectors, and arrays whose norm or gradient is 0, take the learning rate itself."),
    "adafactor": Spec(
        layers.adafactor, 0.02, "second moments from those of rows and columns, steps relative to the weights",
        "Shazeer and Stern 2018",
        {"min_dim_size_to_factor": 128, "decay_rate": 0.8, "clipping_threshold": 1.0, "eps": 1e-30},
        {"decay_rate": Range(0.5, 0.99, "linear")}, by_role=True,
        note="The rate is learning_rate, in the paper min(0.01, 1 / sqrt(t)); kernels with a side below "
        "min_dim_size_to_factor are not factored, as in the authors' code."),
    "adan": Spec(
        adaptive.adan, 3e-3, "Adam with a momentum of the gradient's differences",
        "Xie et al. 2022", {"b1": 0.98, "b2": 0.92, "b3": 0.99, "eps": 1e-8, "weight_decay": 0.0},
        {"b1": Range(0.9, 0.99, "reverse_log"), "b3": Range(0.9, 0.999, "reverse_log")}, by_role=True, own_decay=True,
        note="b1, b2 and b3 are one minus the paper's; the moments start at 0 and their bias is corrected, "
        "as in the authors' code."),
    "novograd": Spec(
        layers.novograd, 0.02, "Adam with one second moment a layer", "Ginsburg et al. 2019",
        {"b1": 0.9, "b2": 0.25, "eps": 1e-6, "weight_decay": 0.0},
        {"b1": Range(0.8, 0.98, "reverse_log"), "b2": Range(0.2, 0.99, "reverse_log")}, by_role=True,
        own_decay=True),
    "sophia": Spec(
        adaptive.sophia, 1e-3, "momentum over the Hessian's diagonal, clipped; needs Hessian products",
        "Liu et al. 2024, algorithm 3 with Hutchinson's estimate",
        {"b1": 0.965, "b2": 0.99, "eps": 1e-8, "gamma": 0.01, "clip_threshold": 1.0, "update_interval": 10,
         "weight_decay": 1e-4},
        {"gamma": Range(1e-3, 1.0)},
        note="The estimate draws signs, in the paper normal numbers."),
    "muon": Spec(
        layers.muon, 3e-3, "the orthogonal factor of each kernel's momentum; Adam for all other parameters",
        "Jordan et al. 2024; Liu et al. 2025 for the scale that lets both share a rate",
        {"beta": 0.95, "ns_steps": 5, "nesterov": True, "consistent_rms": 0.2, "adam_b1": 0.9,
         "adam_b2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
        {"beta": Range(0.8, 0.99, "reverse_log")}, by_role=True,
        note="The iteration is computed in the precision of the state, in the authors' code in bfloat16."),
    "schedule_free_sgd": Spec(
        algorithms.schedule_free_sgd, 0.5, "SGD with an average in place of a schedule; warm up, do not decay",
        "Defazio et al. 2024", {"b1": 0.9, "weight_decay": 0.0, "weight_lr_power": 2.0},
        {"b1": Range(0.8, 0.98, "reverse_log")}, evaluation_params=contrib.schedule_free_eval_params, by_role=True,
        own_decay=True,
        note="Weights of the average are powers of the largest rate so far, as in the authors' code."),
    "schedule_free_adamw": Spec(
        algorithms.schedule_free_adamw, 5e-3,
        "AdamW with an average in place of a schedule; warm up, do not decay",
        "Defazio et al. 2024, algorithm 1", {**ADAM, "weight_decay": 0.0, "weight_lr_power": 2.0},
        BETAS, evaluation_params=contrib.schedule_free_eval_params, by_role=True, own_decay=True,
        note="Weights as in schedule_free_sgd; the bias of the second moment is corrected in it, as in the "
        "authors' later code; in the paper in the rate."),
    "prodigy": Spec(
        algorithms.prodigy, 1.0, "Adam that finds its rate from the distance it travels",
        "Mishchenko and Defazio 2024, algorithm 4",
        {**ADAM, "d0": 1e-6, "d_coef": 1.0, "weight_decay": 0.0}, FREE, by_role=True, own_decay=True,
        note="The rate has the bias corrections of Adam, an option of the authors' code; eps is multiplied "
        "by the distance after its update, as there."),
    "dadapt_adamw": Spec(
        algorithms.dadapt_adamw, 1.0, "Adam that finds its rate by D-adaptation",
        "Defazio and Mishchenko 2023, algorithm 5", {**ADAM, "d0": 1e-6, "weight_decay": 0.0}, FREE,
        by_role=True, own_decay=True,
        note="The rate has the bias corrections of Adam; the estimate weighs by the second moment before "
        "the step, as in the authors' code."),
    "dog": Spec(
        algorithms.dog, 1.0, "SGD at the rate distance over gradients; best with an average (ema)",
        "Ivgi, Hinder and Carmon 2023", {"reps_rel": 1e-6, "eps": 1e-8, "weight_decay": 0.0}, FREE,
        by_role=True, own_decay=True,
        note="Weight decay is added to the gradient, as in the authors' code."),
    "dowg": Spec(
        algorithms.dowg, 0.3, "SGD at the rate distance over weighted gradients",
        "Khaled, Mishchenko and Jin 2023, algorithm 1", {"eps": 1e-4, "weight_decay": 0.0}, FREE,
        by_role=True, own_decay=True,
        note="eps is the square of the first distance, too, as in the authors' code; weight decay is added "
        "to the gradient. The paper's rate, 1, is for convex losses: on networks it overshoots."),
    "momo": Spec(
        contrib.momo, 1.0, "momentum with Polyak's step from the loss, at most the rate",
        "Schaipp et al. 2024, algorithm 1", {"beta": 0.9, "lower_bound": 0.0},
        {"beta": Range(0.8, 0.98, "reverse_log")}),
    "momo_adam": Spec(
        contrib.momo_adam, 1e-2, "Adam with Polyak's step from the loss, at most the rate",
        "Schaipp et al. 2024, algorithm 2", {**ADAM, "lower_bound": 0.0}, BETAS),
    "polyak": Spec(
        partial(optax.polyak_sgd, variant="sps+"), 1.0, "SGD with the step (loss - f_min) / |g|^2, at most the rate",
        "Polyak 1987; Loizou et al. 2021", {"f_min": 0.0, "eps": 0.0},
        note="c of the paper is 1; no step where the loss is below f_min."),
    "lookahead": Spec(
        algorithms.lookahead, 0.1, "momentum, pulled towards slow weights every few steps", "Zhang et al. 2019",
        {"momentum": 0.9, "sync_period": 5, "slow_step_size": 0.5},
        MOMENTUM | {"slow_step_size": Range(0.2, 0.8, "linear")},
        evaluation_params=lambda state, params: state.slow,
        note="The momentum is kept when the weights are synchronized."),
    "sam": Spec(
        algorithms.sam, 0.05, "momentum with the gradient of the worst point nearby; two gradients a step",
        "Foret et al. 2021", {"rho": 0.05, "momentum": 0.9}, MOMENTUM | {"rho": Range(0.01, 0.5)}),
    "rprop": Spec(
        algorithms.rprop, 5e-4, "steps by the gradient's signs alone, for the whole training set",
        "Riedmiller and Braun 1993; Igel and Huesken 2000",
        {"shrink": 0.5, "grow": 1.2, "smallest": 1e-3, "largest": 30.0}, batch_size="full",
        note="Step sizes are in units of the learning rate."),
    "lbfgs": Spec(
        algorithms.lbfgs, 1.0, "quasi-Newton steps with a line search, for the whole training set",
        "Nocedal and Wright 2006, algorithms 3.5 and 7.5", {"memory_size": 10}, batch_size="full",
        note="The first direction is g / max(1, |g|)."),
    "adopt": Spec(
        contrib.adopt, 1e-3, "Adam that converges with any b2", "Taniguchi et al. 2024",
        {"b1": 0.9, "b2": 0.9999, "eps": 1e-6}, BETAS,
        note="Quotients are clipped at (t - 1)^(1/4), as in the authors' later form."),
    "ademamix": Spec(
        contrib.ademamix, 1e-3, "Adam with a second, slow momentum",
        "Pagliardini, Ablin and Grangier 2024", {**ADAM, "b3": 0.9999, "alpha": 5.0, "weight_decay": 0.0},
        BETAS | {"alpha": Range(2.0, 10.0)},
        note="alpha and b3 are constant, without the paper's warm-up."),
    "madgrad": Spec(
        adaptive.madgrad, 1e-2, "dual averaging with cube roots and momentum", "Defazio and Jelassi 2022",
        {"momentum": 0.9, "eps": 1e-6}, MOMENTUM),
    "sm3": Spec(
        layers.sm3, 0.1, "AdaGrad from the maxima of rows and columns", "Anil et al. 2019",
        {"momentum": 0.9}, MOMENTUM, by_role=True),
    "fromage": Spec(
        layers.fromage, 0.02, "steps at each layer's own scale", "Bernstein et al. 2020, On the distance",
        by_role=True,
        note="Arrays whose norm or gradient is 0 take the learning rate itself, as in the authors' code."),
}
# fmt: on

# Unless the entry says otherwise, a rate is searched in a range of three decades about its default.
OPTIMIZERS: dict[str, Spec] = {
    name: entry._replace(
        space={"learning_rate": Range(entry.learning_rate / 30, entry.learning_rate * 30), **entry.space}
    )
    for name, entry in ENTRIES.items()
}
