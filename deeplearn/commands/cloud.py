"""train on a Cloud TPU VM, one chip or a pod, that may be taken away: by gcloud, with queued resources

    python -m deeplearn cloud --do=run --name=mnist --zone=us-west4-a --accelerator=v5litepod-16 --spot \\
      --command='train --config=experiments/mnist_cnn.py --workdir=gs://BUCKET/mnist' [--dry_run]

run is the whole life: it asks for the TPU, waits, installs the last commit on every worker, starts the command there,
shows how it goes, asks for another TPU when this one is taken away, and deletes it at the end. The other verbs are its
parts: create, install, start, watch, stop, delete. The same command goes on wherever this one was stopped, and begins
again, with the last commit, what has ended on a TPU that was kept.

The commit is packed into a file of this machine, in $XDG_CACHE_HOME/deeplearn/bundles (~/.cache/deeplearn/bundles),
which only you can read. Each start gives all workers a new DEEPLEARN_TOKEN; your own, in --env or in the environment,
wins.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from absl import flags

from deeplearn.cloud.life import TOKEN

PLACEHOLDER = "TOKEN-OF-A-DRY-RUN"  # of letters that a shell leaves as they are

VERBS = ("run", "create", "install", "start", "watch", "stop", "delete")
DO = flags.DEFINE_string("do", None, f"what to do: {', '.join(VERBS)}")
NAME = flags.DEFINE_string("name", None, "the TPU's name, of your choice")
ZONE = flags.DEFINE_string("zone", None, "where; `gcloud compute tpus locations list` shows the zones")
ACCELERATOR = flags.DEFINE_string("accelerator", "", "the type, as v5litepod-16")
RUNTIME = flags.DEFINE_string("runtime", "", "the image of its machines; by default that for JAX on this accelerator")
PROJECT = flags.DEFINE_string("project", "", "by default gcloud's own")
SPOT = flags.DEFINE_bool("spot", False, "a TPU that costs less and may be taken away at any moment")
CREATE = flags.DEFINE_multi_string(
    "create", [], "a further flag for `queued-resources create`, as --create=--network=NET; may be given several times"
)
COMMAND = flags.DEFINE_string("command", "", "what every worker runs: what stands behind `python -m deeplearn`")
ENV = flags.DEFINE_multi_string("env", [], "NAME=VALUE in the command's environment; may be given several times")
RETRIES = flags.DEFINE_integer(
    "retries", 50, "how often a TPU is replaced, and how many tries in a row may fail", lower_bound=0
)
EVERY = flags.DEFINE_float(
    "every", 30.0, "seconds between two looks; after failures, twice as long each time", lower_bound=0
)
KEEP = flags.DEFINE_bool("keep", False, "leave the TPU when the command has ended")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the command lines in place of running them")
flags.mark_flags_as_required(["do", "name", "zone"])

# What `watch` says when it ends, by what would have to be done.
ENDED = {
    "create": "there is no such TPU; --do=run or --do=create asks for it",
    "replace": "it was taken away, or never came; --do=run asks for another and goes on",
    "install": "nothing is installed on it yet; --do=run or --do=install and --do=start",
    "start": "the command is gone; --do=run or --do=start goes on",
    "stopped": "the command was stopped, after it had saved; --do=run goes on, --do=delete ends the TPU",
    "done": "the command is done",
    "failed": "the command failed",
    "crashed": "the command failed",
}


def on_workers() -> list[str]:
    """The command line of every worker."""
    from deeplearn.errors import UserError

    try:
        words = shlex.split(COMMAND.value)
    except ValueError as error:
        raise UserError(f"--command={COMMAND.value} cannot be read: {error}") from error
    if words[:1] != ["train"]:
        raise UserError("give what every worker runs, as --command='train --config=FILE --workdir=gs://BUCKET/NAME'")
    if "--workdir=gs://" not in " ".join(words).replace("--workdir gs://", "--workdir=gs://"):
        raise UserError(
            "the workers' disks go with the TPU, and only one of them would hold the run; "
            "give --workdir=gs://BUCKET/NAME in --command"
        )
    if bad := [pair for pair in ENV.value if not pair.partition("=")[0].isidentifier() or "=" not in pair]:
        raise UserError(f"--env={bad[0]} is not of the form NAME=VALUE")
    env = [pair for pair in ENV.value if pair.partition("=")[0] != TOKEN]  # `life.start` passes the token itself
    return ["env", *env, "python", "-m", "deeplearn", *words]


def own_token() -> str:
    """The user's DEEPLEARN_TOKEN, from --env or from the environment; empty if there is none."""
    tokens = [value for name, _, value in (pair.partition("=") for pair in ENV.value) if name == TOKEN]
    return tokens[-1] if tokens else os.environ.get(TOKEN, "")


def pasteable(line: list[str], own: bool) -> str:
    """A command line for the shell, with an expression of this machine's shell in place of the token.

    Every start has to have another token, and a token must not be printed. The one gcloud command carries the same
    token to all workers.

    >>> print(pasteable(["gcloud", "ssh", f"--command=A={PLACEHOLDER} run"], own=False))
    gcloud ssh '--command=A='"$(openssl rand -hex 16)"' run'
    """
    expression = f"${{{TOKEN}:?}}" if own else "$(openssl rand -hex 16)"
    return shlex.join(line).replace(PLACEHOLDER, f"'\"{expression}\"'")


def without_token(words: list[str]) -> list[str]:
    """The command's arguments without the user's token.

    >>> without_token(["--env=DEEPLEARN_TOKEN=a", "--env", "DEEPLEARN_TOKEN=a", "--env", "A=b"])
    ['--env', 'A=b']
    """
    kept = []
    for word in words:
        if not re.match(rf"(--?env=)?{TOKEN}=", word):
            kept.append(word)
        elif word.startswith(TOKEN):  # the value of --env, which is a word of its own
            kept.pop()
    return kept


def main() -> int:
    from deeplearn.cloud import bundle, gcloud, life
    from deeplearn.errors import UserError, unknown

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a worker's log may hold letters that this terminal's encoding lacks
    do = DO.value
    if do not in VERBS:
        raise unknown("verb of --do", do, VERBS)
    if not re.fullmatch(r"[A-Za-z0-9_.~+%][A-Za-z0-9_.~+%-]*", NAME.value):  # the TPU API's, v2
        raise UserError(f"--name={NAME.value} is none that a TPU may have: letters, digits and -, as in mnist-2")
    tpu = gcloud.Tpu(
        NAME.value, ZONE.value, ACCELERATOR.value, RUNTIME.value, PROJECT.value, SPOT.value, tuple(CREATE.value)
    )
    command = on_workers() if do in ("run", "start") else []
    own = own_token()
    token = (lambda: own) if own else life.new_token
    lines = life.steps(do, tpu, command, KEEP.value, PLACEHOLDER if DRY_RUN.value else token())
    if do in ("run", "install"):
        bundle.make_private(Path(bundle.source(tpu)).parent)  # before a dry run too, whose lines need the directory
    if DRY_RUN.value:
        print("\n".join(pasteable(line, bool(own)) for line in lines))
        return 0
    times = life.Times(RETRIES.value, EVERY.value)
    try:
        if do not in ("run", "watch"):
            print(life.carry_out(tpu, lines), end="")
            return 0
        if do == "run":
            life.carry_out(tpu, life.pack(tpu))
        end = life.follow(tpu, command, times, say, do == "run", token)
        say(ENDED[end])
        if end in ("failed", "crashed"):
            print(life.last_words(tpu), end="")
        if do == "run" and end != "stopped" and not KEEP.value:
            life.finish(tpu, times, say)
            say("deleted")
        return int(end not in ("done", "stopped"))
    except gcloud.Failed as error:
        raise UserError(f"gcloud: {error}; run the same command again") from error
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "deeplearn", *without_token(sys.argv[1:])])
        print(
            f"\n{tpu.name} is left as it is, and goes on, and costs; to go on: {again}\n"
            f"to delete it: {shlex.join(gcloud.delete(tpu))}",
            file=sys.stderr,
        )
        return 130  # what a shell says of a program that Ctrl-C ended


def say(line: str) -> None:
    """A line about the TPU, at once."""
    print(f"{NAME.value}: {line}", flush=True)
