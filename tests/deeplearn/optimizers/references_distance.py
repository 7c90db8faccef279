"""Plain NumPy transcriptions of optimizers that take all parameters as one vector, most of which find their own rate.

A rule is `(w, g, t, s, h, here) -> w`: as in references_adam, with the loss at w and the gradient's function, and
with a weight decay for each number.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tests.deeplearn.optimizers.problem import SHAPES, flat, split
from tests.deeplearn.optimizers.references_adam import moment


def prodigy(w, g, t, s, h, here):
    """Mishchenko and Defazio 2024, algorithm 4, with gamma_k = sqrt(1 - b2^k) / (1 - b1^k)."""
    if t == 1:
        s.start, s.d = w, h.d0
    b3 = np.sqrt(h.b2)
    rate = h.learning_rate * s.d * np.sqrt(1 - h.b2**t) / (1 - h.b1**t)
    s.m, s.v = moment(s.m, h.b1, s.d * g), moment(s.v, h.b2, (s.d * g) ** 2)
    s.r = moment(s.r, b3, rate * s.d * g @ (s.start - w))
    s.s = moment(s.s, b3, rate * s.d * g)
    s.d = max(s.d, h.d_coef * s.r / np.abs(s.s).sum())
    return w - rate * (s.m / (np.sqrt(s.v) + s.d * h.eps) + h.weight_decay * w)


def dadapt_adamw(w, g, t, s, h, here):
    """Defazio and Mishchenko 2023, algorithm 5, gamma_k as above, the norm of r by the v before the step."""
    if t == 1:
        s.d = h.d0
    root = np.sqrt(h.b2)
    rate = h.learning_rate * s.d * np.sqrt(1 - h.b2**t) / (1 - h.b1**t)
    s.r = moment(s.r, root, rate * np.sum(g * s.s / (np.sqrt(s.v) + h.eps)))
    s.m, s.v = moment(s.m, h.b1, rate * g), moment(s.v, h.b2, g**2)
    s.s = moment(s.s, root, rate * g)
    s.d = max(s.d, s.r / ((1 - root) * np.abs(s.s).sum()))
    return w - s.m / (np.sqrt(s.v) + h.eps) - rate * h.weight_decay * w


def dog(w, g, t, s, h, here):
    """Ivgi, Hinder and Carmon 2023, equation 1; decay is a part of the gradient, as in the authors' code."""
    if t == 1:
        s.start, s.distance, s.squares = w, h.reps_rel * (1 + np.linalg.norm(w)), h.eps
    g = g + h.weight_decay * w
    s.distance = max(s.distance, np.linalg.norm(w - s.start))
    s.squares = s.squares + g @ g
    return w - h.learning_rate * s.distance / np.sqrt(s.squares) * g


def dowg(w, g, t, s, h, here):
    """Khaled, Mishchenko and Jin 2023, algorithm 1, with the first distance and the eps of the authors' code."""
    if t == 1:
        s.start, s.distance = w, h.eps
    g = g + h.weight_decay * w
    s.distance = max(s.distance, np.sum((w - s.start) ** 2))  # squared
    s.v = s.v + s.distance * g @ g
    return w - h.learning_rate * s.distance / (np.sqrt(s.v) + h.eps) * g


def momo(w, g, t, s, h, here):
    """Schaipp et al. 2024, algorithm 1, its averages begun at the first values."""
    beta = h.beta if t > 1 else 0.0
    s.d, s.f, s.gamma = moment(s.d, beta, g), moment(s.f, beta, here.value), moment(s.gamma, beta, g @ w)
    model = s.f + s.d @ w - s.gamma
    return w - min(h.learning_rate, max(model - h.lower_bound, 0.0) / (s.d @ s.d)) * s.d


def momo_adam(w, g, t, s, h, here):
    """Schaipp et al. 2024, algorithm 2, without decay."""
    s.d, s.f, s.gamma = moment(s.d, h.b1, g), moment(s.f, h.b1, here.value), moment(s.gamma, h.b1, g @ w)
    s.v = moment(s.v, h.b2, g**2)
    diagonal = h.eps + np.sqrt(s.v / (1 - h.b2**t))
    left = 1 - h.b1**t
    step = max(s.f - left * h.lower_bound + s.d @ w - s.gamma, 0.0) / np.sum(s.d**2 / diagonal)
    return w - min(h.learning_rate / left, step) * s.d / diagonal


def polyak(w, g, t, s, h, here):
    """Loizou et al. 2021, SPS_max with c = 1 and gamma_b the rate; no step below f_min."""
    return w - min(h.learning_rate, max(here.value - h.f_min, 0.0) / (g @ g + h.eps)) * g


def sam(w, g, t, s, h, here):
    """Foret et al. 2021, algorithm 1, the base optimizer SGD with momentum."""
    s.v = h.momentum * s.v + here.gradient(w + h.rho * g / np.linalg.norm(g))
    return w - h.learning_rate * s.v


def sophia(w, g, t, s, h, here):
    """Liu et al. 2024, algorithm 3 with algorithm 1's estimate, of random signs instead of normal numbers."""
    if (t - 1) % h.update_interval == 0:
        signs, s.key = random_signs(s.key if t > 1 else jax.random.PRNGKey(0))
        s.h = moment(s.h, h.b2, signs * here.hessian_times(signs))
    s.m = moment(s.m, h.b1, g)
    step = np.clip(s.m / np.maximum(h.gamma * s.h, h.eps), -h.clip_threshold, h.clip_threshold)
    return w - h.learning_rate * (step + h.weight_decay * w)


def random_signs(key):
    """Those that our optimizer draws, and the next key."""
    with jax.enable_x64(True):
        key, now = jax.random.split(key)
        keys = dict(zip(SHAPES, jax.random.split(now, len(SHAPES)), strict=True))
        signs = {name: jax.random.rademacher(keys[name], shape, jnp.float64) for name, shape in SHAPES.items()}
    return flat(split(signs)), key
