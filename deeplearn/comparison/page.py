"""A comparison as one page to look around in: plain data, a template and plotly.js in a single file.

The page fetches nothing, and its own policy forbids it to, so that it opens from a disk or a mail as from a server.
What it shows is worked out before; the page only chooses what to draw and smooths what is drawn.
"""

import html
import json
import math
import os
import re
from importlib import resources
from typing import Any

from deeplearn.files import replacing


def write(path: str | os.PathLike, study: dict[str, Any]) -> None:
    """Write the page of a study.

    Args:
      path: of the HTML file.
      study: what `page.html` draws, in types that JSON has; numbers that are not finite become None, which is a gap.
        title, command: strings, the command being the one that repeats the study.
        manifest: what it ran on, of any shape.
        colours, dashes: for each optimizer "#rrggbb", and one of "solid", "dash", "dot" and "dashdot".
        profiles: None, or for "seconds" and "epochs" {tau, rho, low, high}; the last three by optimizer, `low` and
          `high` if known.
        workloads: a list of dicts,
          name, metric, rises, target (or None): what is measured and where it is to get.
          columns, rows, notes: the table, its first column the optimizer, and the lines below it.
          runs: {optimizer, phase ("tune" or "final"), winner, hyperparameters, seed, diverged, steps, epochs, seconds,
            curves, test} each; `curves` by name, as long as `steps`; `winner` of a run at the optimizer's best point.
          bands: by optimizer and curve {middle, low, high}, along the optimizer's final runs.
          sensitivity: by optimizer a list of {learning_rate, middle, low, high, diverged, runs, hyperparameters}.
          joined: whether the learning rate alone varies, so that a line may join these points.
          budget: by optimizer {k, expected, median, chance}, of the best of k points tried.
          budget_metric: what `expected` is about.

    Raises:
      UserError: the file cannot be written.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "page.html"
    >>> empty = {"command": "", "manifest": {}, "colours": {}, "dashes": {}, "profiles": None, "workloads": []}
    >>> write(path, {"title": "Adam & SGD", **empty})
    >>> "<title>Adam &amp; SGD</title>" in path.read_text(encoding="utf-8")
    True
    """
    text = render(study)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(study: dict[str, Any]) -> str:
    """The page as text; see `write`."""
    from plotly.offline import get_plotlyjs  # megabytes, of use to nothing else

    template = resources.files("deeplearn.comparison").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(study["title"]),
        "study": embedded(shortened(study)),
        "plotly": get_plotlyjs().replace("</script", r"<\/script"),
    }
    # In one pass: what is put in, with names that people chose, is not searched for placeholders again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def embedded(value: Any) -> str:
    r"""JSON that cannot end the script element it stands in.

    >>> embedded({"a</script>": math.nan})
    '{"a\\u003c/script>":null}'
    """
    text = json.dumps(finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c")


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite, for JSON has no other.

    >>> finite({"a": [1, math.inf], "b": (2.5,)})
    {'a': [1, None], 'b': [2.5]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shortened(study: dict[str, Any]) -> dict[str, Any]:
    """The study with its runs' curves to six digits, most of the file otherwise; hyperparameters stay exact."""

    def short(values):
        return [value if value is None else float(f"{value:.6g}") for value in values]

    def run(whole):
        curves = {name: short(values) for name, values in whole["curves"].items()}
        return {**whole, "epochs": short(whole["epochs"]), "seconds": short(whole["seconds"]), "curves": curves}

    workloads = [{**workload, "runs": [run(whole) for whole in workload["runs"]]} for workload in study["workloads"]]
    return {**study, "workloads": workloads}
