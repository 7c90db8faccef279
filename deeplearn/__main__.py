"""The command line: `python -m deeplearn COMMAND --flag=value ...`."""

import ast
import importlib
import sys

COMMANDS = ("train", "evaluate", "generate", "compare", "report", "benchmark", "compile", "cloud")


def first_line(path) -> str:
    """The first line of a Python file's docstring, the file itself not run."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def overview() -> str:
    """The commands, every experiment and every study, a line each, and how to launch one."""
    from pathlib import Path

    here = Path(__file__).resolve().parent
    experiments = here.parent / "experiments"

    def listed(files):
        return [f"  {path.stem:20} {first_line(path)}" for path in files]

    return "\n".join(
        [
            "usage: python -m deeplearn COMMAND [--flag=value ...]",
            "",
            "commands (each has --help):",
            *listed(here / "commands" / f"{name}.py" for name in COMMANDS),
            "",
            "experiments:",
            *listed(sorted(experiments.glob("[a-z]*.py"))),
            "",
            "studies, for compare --study=NAME:",
            *listed(sorted((experiments / "studies").glob("[a-z]*.py"))),
            "",
            "launch one, any field of its config changed by a flag:",
            "  python -m deeplearn train --config=experiments/digits_mlp.py --workdir=runs/digits"
            " --config.optimizer=nadam",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the status to exit with."""
    argv = list(sys.argv if argv is None else argv)
    if len(argv) < 2 or argv[1] in ("help", "-h", "--help"):
        print(overview())
        return 0
    from deeplearn.commands import launch
    from deeplearn.errors import unknown

    if argv[1] not in COMMANDS:
        print(f"error: {unknown('command', argv[1], COMMANDS)}", file=sys.stderr)
        return 2
    return launch.run(importlib.import_module(f"deeplearn.commands.{argv[1]}"), argv[1:])


if __name__ == "__main__":
    sys.exit(main())
