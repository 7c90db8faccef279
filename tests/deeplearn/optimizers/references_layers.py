"""Plain NumPy transcriptions of optimizers that step each layer at a scale of its own; rules as in references_adam."""

import numpy as np

from tests.deeplearn.optimizers.references_adam import moment


def lamb(w, g, t, s, h):
    """You et al. 2020, algorithm 2, phi(z) = z."""
    s.m, s.v = moment(s.m, h.b1, g), moment(s.v, h.b2, g**2)
    r = s.m / (1 - h.b1**t) / (np.sqrt(s.v / (1 - h.b2**t)) + h.eps) + h.weight_decay * w
    return w - h.learning_rate * np.linalg.norm(w) / np.linalg.norm(r) * r


def lars(w, g, t, s, h):
    """You, Gitman and Ginsburg 2017, algorithm 1; vectors at the global rate."""
    norm = np.linalg.norm(w)
    local = h.trust_coefficient * norm / (np.linalg.norm(g) + h.weight_decay * norm) if h.decays else 1.0
    s.v = h.momentum * s.v + h.learning_rate * local * (g + h.weight_decay * w)
    return w - s.v


def novograd(w, g, t, s, h):
    """Ginsburg et al. 2019, algorithm 1."""
    square = np.sum(g**2)
    s.v = square if t == 1 else moment(s.v, h.b2, square)
    s.m = h.b1 * s.m + g / (np.sqrt(s.v) + h.eps) + h.weight_decay * w
    return w - h.learning_rate * s.m


def adafactor(w, g, t, s, h):
    """Shazeer and Stern 2018, algorithms 4 to 6, rho_t = learning_rate, eps_2 = 1e-3."""
    b2 = 1 - t**-h.decay_rate
    square = g**2 + h.eps
    if w.ndim == 2 and min(w.shape) >= h.min_dim_size_to_factor:
        s.rows, s.columns = moment(s.rows, b2, square.sum(1)), moment(s.columns, b2, square.sum(0))
        v = np.outer(s.rows, s.columns) / s.rows.sum()
    else:
        s.v = v = moment(s.v, b2, square)
    u = g / np.sqrt(v)
    u = u / max(1.0, rms(u) / h.clipping_threshold)
    return w - h.learning_rate * max(1e-3, rms(w)) * u


def rms(x):
    return np.sqrt(np.mean(x**2))


def sm3(w, g, t, s, h):
    """Anil et al. 2019, algorithm SM3-II on rows and columns, or on the numbers of a vector, with momentum."""
    if w.ndim == 2:
        rows = s.rows if t > 1 else np.zeros(w.shape[0])
        columns = s.columns if t > 1 else np.zeros(w.shape[1])
        v = np.minimum(rows[:, None], columns) + g**2
        s.rows, s.columns = v.max(1), v.max(0)
    else:
        s.v = v = s.v + g**2
    s.m = moment(s.m, h.momentum, g / np.sqrt(v))
    return w - h.learning_rate * s.m


def fromage(w, g, t, s, h):
    """Bernstein et al. 2020, algorithm 1."""
    step = h.learning_rate * np.linalg.norm(w) / np.linalg.norm(g) * g
    return (w - step) / np.sqrt(1 + h.learning_rate**2)


def muon(w, g, t, s, h):
    """Jordan et al. 2024, with the scale of Liu et al. 2025, equation 4; Kingma and Ba's algorithm 1 beside kernels."""
    lost = h.learning_rate * h.weight_decay * w
    if not h.is_kernel:
        s.m, s.v = moment(s.m, h.adam_b1, g), moment(s.v, h.adam_b2, g**2)
        m, v = s.m / (1 - h.adam_b1**t), s.v / (1 - h.adam_b2**t)
        return w - lost - h.learning_rate * m / (np.sqrt(v) + h.eps)
    s.m = h.beta * s.m + g
    o = newton_schulz(g + h.beta * s.m if h.nesterov else s.m, h.ns_steps, h.eps)
    return w - lost - h.learning_rate * h.consistent_rms * np.sqrt(max(w.shape)) * o


def newton_schulz(x, steps, eps):
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (np.sqrt(np.sum(x**2)) + eps)
    for _ in range(steps):
        a = x @ x.T
        b = -4.7750 * a + 2.0315 * a @ a
        x = 3.4445 * x + b @ x
    return x.T if transposed else x
