"""L-BFGS against the formulas of Nocedal and Wright 2006, at each step of a run of ours, whose noise stays the same."""

import numpy as np

from tests.deeplearn.optimizers import problem

C1, C2 = 1e-4, 0.9  # of the Wolfe conditions, Nocedal and Wright, section 3.1
CONVERGED = 1e-5  # the norm of a gradient after which rounding decides


def two_loops(g: np.ndarray, moves: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Algorithm 7.4: the inverse Hessian times g, from pairs of steps and of differences of gradients, oldest first."""
    if not len(moves):
        return g * min(1.0, 1.0 / np.linalg.norm(g))
    q, alphas = g, []
    for s, y in zip(moves[::-1], turns[::-1], strict=True):
        alphas.append(s @ q / (y @ s))
        q = q - alphas[-1] * y
    r = q * (moves[-1] @ turns[-1]) / (turns[-1] @ turns[-1])  # equation 7.20
    for s, y, alpha in zip(moves, turns, alphas[::-1], strict=True):
        r = r + s * (alpha - y @ r / (y @ s))
    return r


def difference(text: str) -> float:
    """The largest distance of a step from the direction of the two-loop recursion, relative to the movement.

    Raises AssertionError for a step that breaks the strong Wolfe conditions, and for a run that does not converge.
    """
    _, settings = problem.settings(text)
    path = [problem.split(problem.START), *problem.ours(text, noise=[0] * problem.STEPS).params]
    values, gradients = zip(*(problem.value_and_grad(w, 0) for w in path), strict=True)
    w, g = np.stack([*map(problem.flat, path)]), np.stack([*map(problem.flat, gradients)])
    moves, turns = np.diff(w, axis=0), np.diff(g, axis=0)
    far = int(np.argmax(np.linalg.norm(g, axis=1) < CONVERGED))
    assert far > 15 and values[far] < values[0] / 10, (far, values)
    worst = 0.0
    for k in range(far):
        kept = slice(max(0, k - settings["memory_size"]), k)
        d = -settings["learning_rate"] * two_loops(g[k], moves[kept], turns[kept])
        rate = moves[k] @ d / (d @ d)
        assert values[k + 1] <= values[k] + C1 * rate * g[k] @ d
        assert abs(g[k + 1] @ d) <= C2 * abs(g[k] @ d)
        worst = max(worst, np.max(np.abs(moves[k] - rate * d)))
    return worst / np.max(np.abs(w - w[0]))
