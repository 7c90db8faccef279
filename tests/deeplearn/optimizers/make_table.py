"""Writes the table in deeplearn/optimizers/README.md: `python -m tests.deeplearn.optimizers.make_table`."""

import re
from pathlib import Path

from deeplearn.optimizers import OPTIMIZERS
from tests.deeplearn.optimizers import cases, references

README = Path(__file__).parents[3] / "deeplearn" / "optimizers" / "README.md"
HEAD = ("optimizer", "what it does", "source", "reference", "largest difference", "how it differs from its source")
MEASURED = HEAD.index("largest difference")


def rows(difference=lambda name: "") -> list[list[str]]:
    """The table without its head; `difference` gives a cell for an optimizer's name."""
    return [
        [name, entry.summary, entry.source, references.shown(name), difference(name), entry.note or "-"]
        for name, entry in OPTIMIZERS.items()
    ]


def measured(name: str) -> str:
    largest = max(cases.difference(*run) for run in cases.runs(name))
    return f"{largest:.0e}" if largest else "0"


def written(text: str) -> list[list[str]]:
    """The rows of the table in a README, its head among them."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main():
    before, *_ = README.read_text().partition("\n| ")
    table = [line(HEAD), "|---" * len(HEAD) + "|\n", *map(line, rows(measured))]
    README.write_text(before.rstrip() + "\n\n" + "".join(table))


if __name__ == "__main__":
    main()
