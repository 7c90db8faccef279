"""Learning-rate schedules by name: the factor on the peak learning rate at each step.

Times are given in one way: a number below 1 is a fraction of the run, one of 1 or more a number of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import reduce_on_plateau

from deeplearn import fields, spec
from deeplearn.errors import UserError, unknown


class Spec(NamedTuple):
    """A schedule of the table.

    Fields:
      make: `(steps, warmup, **settings) -> (step -> factor)`, all times in steps.
      summary: one line, with the source.
      settings: their defaults.
      times: the settings that are times.
    """

    make: Callable[..., Callable]
    summary: str
    settings: dict[str, Any]
    times: tuple[str, ...] = ("warmup",)


class Plateau(NamedTuple):
    """A schedule that watches the training loss: an `optax.schedules.StatefulSchedule`.

    When the loss, averaged over `window` steps, has for `patience` windows not fallen below its best by the
    fraction `tolerance`, it multiplies by `factor`, down to `final`, and rests for `cooldown` windows.
    """

    ramp: Callable
    factor: float
    patience: int
    window: int
    cooldown: int
    tolerance: float
    final: float

    def reduce(self):
        return reduce_on_plateau(
            factor=self.factor,
            patience=self.patience,
            rtol=self.tolerance,
            cooldown=self.cooldown,
            accumulation_size=self.window,
            min_scale=self.final,
        )

    def init(self):
        return jnp.int32(0), self.reduce().init(jnp.float32(0))

    def update(self, state, *, value, **_):
        step, reduced = state
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies an integer count with a float average
            return step + 1, self.reduce().update((), reduced, value=value)[1]

    def __call__(self, state, **_):
        step, reduced = state
        return self.ramp(jnp.asarray(step, jnp.float32)) * reduced.scale


def ramp(warmup: int) -> Callable:
    """1 / (w + 1), 2 / (w + 1), ... up to 1 at step w: the first step moves already."""
    return optax.linear_schedule(1 / (warmup + 1), 1.0, warmup)


def after_warmup(decay: Callable) -> Callable:
    """The schedule that ramps up first and gives what is left of the run to `decay(steps, **settings)`."""

    def make(steps, warmup, **settings):
        rest = decay(max(steps - warmup, 1), **settings)
        return optax.join_schedules([ramp(warmup), rest], [warmup]) if warmup else rest

    return make


def one_cycle(steps, warmup, initial, final):
    peak = max(warmup, 1)
    end = max(steps, peak + 1)
    return optax.piecewise_interpolate_schedule("cosine", initial, {peak: 1 / initial, end: final})


def plateau(steps, warmup, **settings):
    return Plateau(ramp(warmup) if warmup else optax.constant_schedule(1.0), **settings)


SCHEDULES: dict[str, Spec] = {
    "constant": Spec(
        after_warmup(lambda steps: optax.constant_schedule(1.0)),
        "1 throughout",
        {},
    ),
    "linear": Spec(
        after_warmup(lambda steps, final: optax.linear_schedule(1.0, final, steps)),
        "a straight line from 1 to `final`",
        {"final": 0.0},
    ),
    "cosine": Spec(
        after_warmup(lambda steps, final: optax.cosine_decay_schedule(1.0, steps, alpha=final)),
        "half a cosine from 1 to `final`; Loshchilov and Hutter 2017, equation 5",
        {"final": 0.0},
    ),
    "step": Spec(
        after_warmup(lambda steps, every, factor: optax.exponential_decay(1.0, every, factor, 0, True)),
        "times `factor` at each `every`; He et al. 2016, section 3.4",
        {"every": 1 / 3, "factor": 0.1},
        times=("warmup", "every"),
    ),
    "exponential": Spec(
        after_warmup(lambda steps, final: optax.exponential_decay(1.0, steps, final, end_value=final)),
        "one ratio from each step to the next, from 1 to `final`",
        {"final": 0.01},
    ),
    "one_cycle": Spec(
        one_cycle,
        "half a cosine from `initial` up to 1, half a cosine down to `final`; Smith and Topin 2019",
        {"warmup": 0.3, "initial": 0.04, "final": 4e-6},
    ),
    "inverse_square_root": Spec(
        after_warmup(lambda steps, timescale: lambda step: (1 + step / timescale) ** -0.5),
        "1 / sqrt(1 + t / timescale), t from the warm-up on; Vaswani et al. 2017, eq. 3, if both are equal",
        {"warmup": 0.05, "timescale": 0.05},
        times=("warmup", "timescale"),
    ),
    "plateau": Spec(
        plateau,
        "times `factor` when the training loss has stopped to fall; a window of 0 is an epoch",
        {"factor": 0.1, "patience": 5, "window": 0.0, "cooldown": 0, "tolerance": 1e-3, "final": 0.0},
        times=("warmup", "window"),
    ),
}


def make(text: str, steps: int, steps_per_epoch: int = 1) -> Callable[[jax.Array], jax.Array]:
    """The schedule that `text` names: step (int32 scalar) -> factor (float32 scalar in [0, 1]).

    Every schedule takes `warmup`, a time: in its w steps the factor rises to 1 in equal parts. The schedule
    proper fills the rest of the run's `steps` and stays where it ends. `plateau` has to see the loss: it is a
    `Plateau`, which `optimizers.make` takes as it takes the others.

    Raises UserError for an unknown schedule or setting, and for a number out of range.

    >>> schedule = make("cosine(warmup=0.1)", steps=1000)
    >>> [round(float(schedule(step)), 3) for step in (0, 100, 550, 1000)]
    [0.01, 1.0, 0.5, 0.0]
    """
    name, given = spec.parse(text)
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    entry = SCHEDULES[name]
    defaults = {"warmup": 0.0, **entry.settings}
    values = {**defaults, **spec.settings("schedule", name, given, defaults)}
    for key, value in values.items():
        above = value > 0 or (value == 0 and (key == "warmup" or defaults[key] == 0))
        below = value < 1 or value <= fields.LARGEST and (key in entry.times or isinstance(value, int))
        if not (above and below):
            raise UserError(f"schedule {name}: {key}={value} is out of range; e.g. {key}={defaults[key]:.3g}")
        if key in entry.times:
            # Only the warm-up may be of no length, and only a plateau's window has an epoch for its zero.
            shortest = 0 if key == "warmup" else steps_per_epoch if value == 0 else 1
            values[key] = max(in_steps(value, steps), shortest)
    schedule = entry.make(steps, **values)
    if isinstance(schedule, Plateau):
        return schedule

    def factor(step):
        with jax.numpy_dtype_promotion("standard"):  # one_cycle: optax multiplies booleans with floats
            return jnp.clip(schedule(jnp.asarray(step, jnp.float32)), 0.0, 1.0)

    return factor


def in_steps(time: float, steps: int) -> int:
    """A time as a number of steps: of a fraction of the run if below 1, else of steps already.

    >>> in_steps(0.25, 1000), in_steps(40.0, 1000)
    (250, 40)
    """
    return round(time * steps) if time < 1 else round(time)
