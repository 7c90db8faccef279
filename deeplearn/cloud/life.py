"""The life of a run on a TPU that may be taken away: ask, wait, install, start, watch, and ask again.

What is to be done next is a function of the resource's state and of what its workers say. Nothing is remembered between
two looks but how often something failed, so that the same command goes on wherever it, or its machine, was stopped.
"""

import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from deeplearn.cloud import gcloud
from deeplearn.cloud.answers import all_workers, judge, read_node, read_state
from deeplearn.cloud.bundle import not_written, source
from deeplearn.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "deeplearn/deeplearn/cloud/worker.sh"
WORKER = f"bash {SCRIPT}"
TOKEN = "DEEPLEARN_TOKEN"
LONGEST = 600.0  # seconds between two tries
LOG_LINE = 2000  # characters of a log's line that are shown
INSTALLS = 3  # in a row that may fail: the fourth would too

# QueuedResourceState of the TPU API, v2. A resource that is suspended or failed never gets a node again.
ACTIONS = {
    "ABSENT": "create",
    "STATE_UNSPECIFIED": "wait",
    "CREATING": "wait",
    "ACCEPTED": "wait",
    "WAITING_FOR_RESOURCES": "wait",
    "PROVISIONING": "wait",
    "ACTIVE": "look",
    "SUSPENDING": "wait",
    "SUSPENDED": "replace",
    "FAILED": "replace",
    "DELETING": "wait",
}
GONE = ("PREEMPTED", "TERMINATED", "ABSENT")  # states of a node that never comes back
ENDS = ("done", "failed", "crashed", "stopped")  # of the command: 0, a user's mistake, another status, `stop`
TWICE = ("start", "crashed")  # what machines that are being taken away bring about too: believed at the second look


class Look(NamedTuple):
    """The state of the resource or of the command, and the next action.

    Fields:
      action: create, wait, replace, install, start, or one of ENDS.
      said: a line for people.
      state: of the resource.
    """

    action: str
    said: str
    state: str


class Times(NamedTuple):
    """How patient to be.

    Fields:
      retries: how often the TPU is asked for again, and how many commands may fail in a row.
      every: seconds between two looks.
      sleep: waits for so many seconds.
    """

    retries: int
    every: float
    sleep: Callable[[float], None] = time.sleep


def pack(tpu: gcloud.Tpu) -> list[list[str]]:
    """The last commit, as a file from which git clones: so a run's manifest knows what was run.

    Git writes FILE.lock and renames it: another process that copies the bundle at that time gets the old one or the
    new one.
    """
    git = ["git", "-C", str(ROOT)]
    return [[*git, "diff", "--quiet", "HEAD"], [*git, "bundle", "create", "--quiet", source(tpu), "HEAD"]]


def install(tpu: gcloud.Tpu) -> list[list[str]]:
    """Bring the bundle to every worker, and install it there."""
    clone = "rm -rf deeplearn && git clone --quiet deeplearn.bundle deeplearn"
    return [gcloud.scp(tpu, source(tpu), "deeplearn.bundle"), gcloud.ssh(tpu, f"{clone} && {WORKER} install")]


def new_token() -> str:
    """A token for one start, by which the processes of a run know each other; see `start`."""
    return secrets.token_hex(16)


def start(tpu: gcloud.Tpu, command: Sequence[str], token: str = "") -> list[str]:
    """Start the command on every worker, in the background.

    Args:
      tpu: whose workers.
      command: the command line.
      token: DEEPLEARN_TOKEN of the command, the same on all workers, because one gcloud command carries it; empty for
        none. It is an assignment in front of the command, not a word of `env`: a worker's process list, which every
        user of the machine can read, shows arguments but no environment.
    """
    assignment = f"{TOKEN}={shlex.quote(token)} " if token else ""
    return gcloud.ssh(tpu, f"{assignment}{WORKER} start {shlex.join(command)}")


def status(tpu: gcloud.Tpu) -> list[str]:
    """Ask every worker for its state; a worker without the project is new.

    If a worker's script fails, gcloud fails. That worker must not count as new: its command may be running.
    """
    new = "echo \"worker $(hostname | LC_ALL=C tr -cd 'A-Za-z0-9._-') new\""
    return gcloud.ssh(tpu, f"if [ -e {SCRIPT} ]; then {WORKER} status; else {new}; fi")


def tell(tpu: gcloud.Tpu, verb: str) -> list[str]:
    """`log`: show the end of every worker's log; `stop`: end the command on every worker, after it has saved."""
    return gcloud.ssh(tpu, f"{WORKER} {verb}")


def steps(do: str, tpu: gcloud.Tpu, command: Sequence[str], keep: bool = False, token: str = "") -> list[list[str]]:
    """The command lines of a verb; for `run`, those of a run without trouble, up to the deletion unless `keep`."""
    looks = [gcloud.describe(tpu), status(tpu)]
    made = {
        "create": lambda: [gcloud.create(tpu)],
        "install": lambda: [*pack(tpu), *install(tpu)],
        "start": lambda: [start(tpu, command, token)],
        "watch": lambda: looks,
        "stop": lambda: [tell(tpu, "stop")],
        "delete": lambda: [gcloud.delete(tpu)],
    }
    if do in made:
        return made[do]()
    end = [] if keep else [gcloud.delete(tpu)]
    return [*pack(tpu), gcloud.create(tpu), *install(tpu), start(tpu, command, token), *looks, *end]


def look(tpu: gcloud.Tpu) -> Look:
    """Look at the resource, and at its workers if it has any.

    Raises:
      UserError: it is another kind of TPU; or as `gcloud.call`.
      gcloud.Failed: it cannot be seen now.
    """
    state, why, kind = read_state(_seen(tpu, gcloud.describe(tpu), '{"state": {"state": "ABSENT"}}'))
    if tpu.accelerator and kind and kind != tpu.accelerator:
        raise UserError(
            f"{tpu.name} in {tpu.zone} is there already and is a {kind}, not a {tpu.accelerator}; choose another --name"
        )
    action = ACTIONS.get(state, "wait")
    if action != "look":
        return Look(action, f"{state}: {why}" if why else state, state)
    try:
        workers = all_workers(*gcloud.call(status(tpu), explain(tpu)))
    except gcloud.Failed:
        node = read_node(_seen(tpu, gcloud.node(tpu), "ABSENT"))
        if node in GONE:
            return Look("replace", f"its node is {node}", state)
        raise
    action, number = judge([how for _, how, _ in workers]), len(workers)
    host, how, last = workers[0]
    if action in ("failed", "crashed"):
        host, how, last = next(worker for worker in workers if worker[1] not in ("running", "stopped", "143", "0"))
    return Look(action, f"{number} worker{'s' * (number > 1)}; {host} {how}: {last}", state)


def _seen(tpu: gcloud.Tpu, line: Sequence[str], absent: str) -> str:
    try:
        return gcloud.call(line, explain(tpu))[0]
    except gcloud.Missing:
        return absent


def explain(tpu: gcloud.Tpu, program: str = "gcloud") -> Callable[[str], Exception]:
    """What the words of a program that failed mean."""
    if program == "gcloud":
        return lambda text: gcloud.failure(tpu, text)
    return lambda text: not_written(tpu, text)


def carry_out(tpu: gcloud.Tpu, lines: Sequence[Sequence[str]]) -> str:
    """Run command lines one after another; what the last one printed."""
    return [gcloud.call(line, explain(tpu, line[0])) for line in lines][-1][0]


def pause(count: int, every: float) -> float:
    """Seconds to wait after the `count`-th failure in a row: twice as long each time, to a limit.

    >>> [pause(count, 30.0) for count in (1, 2, 3, 9)]
    [30.0, 60.0, 120.0, 600.0]
    """
    return min(every * 2.0 ** min(count - 1, 60), LONGEST)


def follow(
    tpu: gcloud.Tpu,
    command: Sequence[str],
    times: Times,
    say: Callable[[str], None],
    repair: bool = True,
    token: Callable[[], str] = new_token,
) -> str:
    """Look, do what is to be done, and look again, until the command has ended.

    Args:
      tpu: what to ask for.
      command: what every worker runs; the bundle is there already (`pack`).
      times: how patient to be.
      say: gets a line for people when there is something new.
      token: returns the token of a start.
      repair: restart a command that ended before, too; False: only watch, and return the first action that is needed.

    Returns:
      One of ENDS; without `repair`, any action but "wait".

    Raises:
      UserError: what only the user can put right, and more failures than `times.retries`. The TPU is left as it is.
    """
    lost = failed = 0  # TPUs or commands altogether; command lines in a row
    idle = installs = 0  # losses since the command last ran; installations in a row that failed
    before, earlier = Look("", "", ""), repair  # whether what has ended ended before anybody looked
    while True:
        try:
            now = look(tpu)
            if now.said != before.said:
                say(now.said)
            if earlier and now.action in ENDS:
                now = now._replace(action="install")
            again, before, earlier = now.action == before.action, now, False
            if now.action in TWICE and not again:
                times.sleep(times.every)
            elif now.action in ENDS or (now.action != "wait" and not repair):
                return now.action
            elif now.action == "wait":
                idle = 0 if now.state == "ACTIVE" else idle
                times.sleep(times.every)
            elif now.action == "create":
                carry_out(tpu, [gcloud.create(tpu)])
            elif now.action == "install":
                installs += 1
                say("installing on every worker")
                carry_out(tpu, [*install(tpu), start(tpu, command, token())])
                installs = 0
            else:
                lost, idle, installs, before = lost + 1, idle + 1, 0, Look("", "", now.state)
                if lost > times.retries:
                    raise UserError(f"lost {lost} times, more than --retries; its last checkpoint is intact")
                replace = now.action == "replace"
                carry_out(tpu, [gcloud.delete(tpu) if replace else start(tpu, command, token())])
                times.sleep(pause(idle, times.every))
            failed = 0
        except gcloud.Failed as error:
            failed += 1
            if failed > times.retries or installs >= INSTALLS:
                raise left(tpu, f"{max(failed, installs)} tries in a row failed: {error}") from error
            say(f"will try again: {error}")
            times.sleep(pause(failed, times.every))
        except UserError as error:
            if before.state in ("", "ABSENT"):
                raise
            raise left(tpu, str(error)) from error


def left(tpu: gcloud.Tpu, why: str) -> UserError:
    """The error that ends a watch while there may be a TPU."""
    return UserError(f"{why}; {tpu.name} is left as it is: the same command goes on, --do=delete ends it")


def last_words(tpu: gcloud.Tpu) -> str:
    """The end of every worker's log, or why it cannot be read."""
    try:
        log = carry_out(tpu, [tell(tpu, "log")])
        return "".join(f"{gcloud.printable(line)[:LOG_LINE]}\n" for line in log.removesuffix("\n").split("\n"))
    except gcloud.Failed as error:
        return f"the workers' logs cannot be read: {error}\n"


def finish(tpu: gcloud.Tpu, times: Times, say: Callable[[str], None]) -> None:
    """Delete the TPU, and try again until it is gone.

    Raises UserError: it cannot be deleted, and goes on costing.
    """
    for count in range(1, times.retries + 2):
        try:
            carry_out(tpu, [gcloud.delete(tpu)])
            return
        except gcloud.Missing:
            return
        except (gcloud.Failed, UserError) as error:  # what only the user can put right too: it costs until then
            say(f"will try again: {error}")
            times.sleep(pause(count, times.every))
    raise UserError(f"cannot delete {tpu.name}, which goes on costing; delete it: {shlex.join(gcloud.delete(tpu))}")
