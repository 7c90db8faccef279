"""From the command line to a command's `main`: flags, help, and a user's mistakes in one line."""

import os
import re
import select
import sys

from absl import flags

from deeplearn import fields
from deeplearn.errors import UserError, unknown


def run(module, argv: list[str]) -> int:
    """Parse `argv` by the flags of `module` and call its `main()`; the status to exit with.

    A UserError prints one line and gives 2. If the reader of the output closes it, as `head` does, the status is 141,
    as of a program that SIGPIPE ended. Every other exception is a fault of ours and keeps its traceback.
    """
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(module.__doc__.strip(), flags.FLAGS.module_help(module), sep="\n\n")
        return 0
    try:
        parse(argv)
        return module.main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, select.POLLOUT)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):  # another connection's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python writes the rest at its end
        return 141


def parse(argv: list[str]) -> None:
    """Parse the flags; every mistake in them, and in the fields of --config, is a UserError."""
    module = check_config(argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags have the form --name=value")
    if module is not None:
        from deeplearn import experiment

        experiment.check(module, flags.FLAGS["config"].value)
    for name in flags.FLAGS:
        fields.check_finite(f"--{name}", flags.FLAGS[name].value)  # absl's bounds let NaN pass


def check_config(argv: list[str]):
    """Point --config at the file it names, and check the names of the fields that are set; the experiment's module.

    None without --config. ml_collections gives a bare KeyError for an unknown field and a page of text for an unknown
    file.
    """
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            at, path = (i, match[1]) if match[1] is not None else (i + 1, argv[i + 1] if i + 1 < len(argv) else "")
            break
    else:
        return None
    from deeplearn import experiment

    module = experiment.load(path)
    argv[at] = f"{'--config=' if at == i else ''}{experiment.find(path)}"
    fields = module.get_config()
    for argument in argv[1:]:
        if (match := re.match(r"--?(?:no)?config\.([\w.]+)", argument)) and match[1] not in fields:
            raise unknown("config field", match[1], fields.keys())
    return module
