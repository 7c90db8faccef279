"""Plain NumPy transcriptions of optimizers that step each number by its own moments.

A rule is `(w, g, t, s, h) -> w` of one array: parameter, gradient, step from 1, memory (0 where nothing is stored) and
hyperparameters.
"""

import numpy as np


def moment(old, decay, new):
    return decay * old + (1 - decay) * new


def adam_without_correction(w, g, t, s, h):
    """Devlin et al. 2019: algorithm 1 of Kingma and Ba 2015 without its lines that correct the bias."""
    s.m, s.v = moment(s.m, h.b1, g), moment(s.v, h.b2, g**2)
    return w - h.learning_rate * (s.m / (np.sqrt(s.v) + h.eps) + h.weight_decay * w)


def nadamw(w, g, t, s, h):
    """Dozat 2016, algorithm 2 with mu_t = b1 for every t; the decay of Loshchilov and Hutter 2019."""
    s.m, s.v = moment(s.m, h.b1, g), moment(s.v, h.b2, g**2)
    m = h.b1 * s.m / (1 - h.b1 ** (t + 1)) + (1 - h.b1) * g / (1 - h.b1**t)
    v = s.v / (1 - h.b2**t)
    return w - h.learning_rate * (m / (np.sqrt(v) + h.eps) + h.weight_decay * w)


def radam(w, g, t, s, h):
    """Liu et al. 2020, algorithm 2; eps is added before the correction of the bias, as in PyTorch."""
    s.m, s.v = moment(s.m, h.b1, g), moment(s.v, h.b2, g**2)
    longest = 2 / (1 - h.b2) - 1
    length = longest - 2 * t * h.b2**t / (1 - h.b2**t)
    m = s.m / (1 - h.b1**t)
    if length <= h.threshold:
        return w - h.learning_rate * m
    r = np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return w - h.learning_rate * r * m * np.sqrt(1 - h.b2**t) / (np.sqrt(s.v) + h.eps)


def rmsprop_inside(w, g, t, s, h):
    """Tieleman and Hinton 2012, eps inside the root."""
    s.v = moment(s.v, h.decay, g**2)
    return w - h.learning_rate * g / np.sqrt(s.v + h.eps)


def yogi(w, g, t, s, h):
    """Zaheer et al. 2018, algorithm 2, with the correction and the first value of v of the authors' code."""
    if t == 1:
        s.v = 1e-6
    s.m = moment(s.m, h.b1, g)
    s.v = s.v - (1 - h.b2) * np.sign(s.v - g**2) * g**2
    m, v = s.m / (1 - h.b1**t), s.v / (1 - h.b2**t)
    return w - h.learning_rate * m / (np.sqrt(v) + h.eps)


def adabelief(w, g, t, s, h):
    """Zhuang et al. 2020, algorithm 2: s_t about the mean of this step, its eps added in every step."""
    s.m = moment(s.m, h.b1, g)
    s.s = moment(s.s, h.b2, (g - s.m) ** 2) + h.eps_root
    m, variance = s.m / (1 - h.b1**t), s.s / (1 - h.b2**t)
    return w - h.learning_rate * m / (np.sqrt(variance) + h.eps)


def lion(w, g, t, s, h):
    """Chen et al. 2023, algorithm 2."""
    step = np.sign(moment(s.m, h.b1, g))
    s.m = moment(s.m, h.b2, g)
    return w - h.learning_rate * (step + h.weight_decay * w)


def signum(w, g, t, s, h):
    """Bernstein et al. 2018, algorithm 2."""
    s.m = moment(s.m, h.beta, g)
    return w - h.learning_rate * np.sign(s.m)


def adan(w, g, t, s, h):
    """Xie et al. 2022, algorithm 1, b of ours being 1 - beta of the paper; corrected as in the authors' code."""
    change = g - s.g if t > 1 else 0.0
    s.g = g
    s.m, s.v = moment(s.m, h.b1, g), moment(s.v, h.b2, change)
    s.n = moment(s.n, h.b3, (g + h.b2 * change) ** 2)
    m, v, n = s.m / (1 - h.b1**t), s.v / (1 - h.b2**t), s.n / (1 - h.b3**t)
    step = h.learning_rate / (np.sqrt(n) + h.eps)
    return (w - step * (m + h.b2 * v)) / (1 + h.learning_rate * h.weight_decay)


def adopt(w, g, t, s, h):
    """Taniguchi et al. 2024, algorithm 2, clipped at t^(1/4): the first gradient makes v_0 and no step."""
    if t == 1:
        s.v = g**2
        return w
    bound = (t - 1) ** 0.25
    s.m = moment(s.m, h.b1, np.clip(g / np.maximum(np.sqrt(s.v), h.eps), -bound, bound))
    s.v = moment(s.v, h.b2, g**2)
    return w - h.learning_rate * s.m


def ademamix(w, g, t, s, h):
    """Pagliardini, Ablin and Grangier 2024, algorithm 1, alpha and b3 constant."""
    s.fast, s.slow, s.v = moment(s.fast, h.b1, g), moment(s.slow, h.b3, g), moment(s.v, h.b2, g**2)
    m, v = s.fast / (1 - h.b1**t), s.v / (1 - h.b2**t)
    return w - h.learning_rate * ((m + h.alpha * s.slow) / (np.sqrt(v) + h.eps) + h.weight_decay * w)


def madgrad(w, g, t, s, h):
    """Defazio and Jelassi 2022, algorithm 1, c = 1 - momentum."""
    if t == 1:
        s.start = w
    weight = h.learning_rate * np.sqrt(t)
    s.s, s.v = s.s + weight * g, s.v + weight * g**2
    z = s.start - s.s / (np.cbrt(s.v) + h.eps)
    return h.momentum * w + (1 - h.momentum) * z


def schedule_free_sgd(w, g, t, s, h):
    """Defazio et al. 2024, equations 3 to 5; decay at y."""
    return _schedule_free(w, g, t, s, h)


def schedule_free_adamw(w, g, t, s, h):
    """Defazio et al. 2024, algorithm 1, the bias of v corrected in v."""
    s.v = moment(s.v, h.b2, g**2)
    return _schedule_free(w, g / (np.sqrt(s.v / (1 - h.b2**t)) + h.eps), t, s, h)


def _schedule_free(y, direction, t, s, h):
    if t == 1:
        s.x = s.z = y
    s.z = s.z - h.learning_rate * (direction + h.weight_decay * y)
    s.largest = max(s.largest, h.learning_rate)
    weight = s.largest**h.weight_lr_power
    s.weights = s.weights + weight
    c = weight / s.weights
    s.x = s.evaluated = (1 - c) * s.x + c * s.z
    return (1 - h.b1) * s.z + h.b1 * s.x


def lookahead(w, g, t, s, h):
    """Zhang et al. 2019, algorithm 1; the inner optimizer, SGD with momentum, keeps its momentum."""
    if t == 1:
        s.slow = w
    s.v = h.momentum * s.v + g
    w = w - h.learning_rate * s.v
    if t % h.sync_period == 0:
        s.slow = w = s.slow + h.slow_step_size * (w - s.slow)
    s.evaluated = s.slow
    return w
