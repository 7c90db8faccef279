"""Tables: which classes are taken for which, and the layers' parameters."""

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplearn.pictures import style


def confusion_matrix(path: str | os.PathLike, matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draw counts by true class (rows) and predicted class (columns), coloured by each row's shares.

    Args:
      path: the PNG to write.
      matrix: (K, K), counts.
      classes: the names of the K classes.

    Returns:
      (K, K), the shares: each row sums to 1, or is 0 where the class does not occur.

    Raises:
      UserError: the file cannot be written.
    """
    matrix = np.asarray(matrix)
    count = len(matrix)
    sums = matrix.sum(axis=1, keepdims=True)  # (K, 1)
    shares = matrix / np.where(sums == 0, 1, sums)  # (K, K)
    longest = max(style.text_width(str(name), 8) for name in classes)
    cell = min(0.5, 5.5 / count)
    size = max(cell * count + longest + 0.9, 3.2)
    total = matrix.sum()
    with style.picture(path, size, size) as figure:
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if count <= 25:
            for row, column in np.ndindex(count, count):
                if matrix[row, column]:
                    colour = style.PAPER if shares[row, column] > 0.5 else style.INK
                    text = f"{matrix[row, column]:,.0f}"
                    points = min(8.0, 8.0 * 0.85 * cell / style.text_width(text, 8))
                    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=points)
        ticks = range(0, count, -(-count // 40))  # every class up to 40, then every second, third ...
        names = [str(classes[k]) for k in ticks]
        upright = max(style.text_width(name, 8) for name in names) > 0.9 * cell
        axes.set_xticks(ticks, names, rotation=90 if upright else 0)
        axes.set_yticks(ticks, names)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted", ylabel="true")
        right = f"{np.trace(matrix):,.0f} of {total:,.0f} right"
        axes.set_title(f"{100 * np.trace(matrix) / total:.2f} %: {right}" if total else "no examples")
    return shares


def layer_table(module: Any, *inputs: Any) -> str:
    """`nn.tabulate`'s table of `module` applied to `inputs`.

    Args:
      module: a Flax linen module.
      inputs: example arrays or jax.ShapeDtypeStruct, (B, ...) each.
    """
    import jax

    options = {"train": False} if "train" in inspect.signature(module.__call__).parameters else {}
    console = {"force_terminal": False, "no_color": True, "width": 120}
    key = jax.jit(lambda: jax.random.key(0))()  # without a transfer that a guard would refuse
    text = module.tabulate(key, *inputs, console_kwargs=console, **options)
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
