"""Reads what gcloud and the workers print. An answer may be empty, cut off or of another form.

An answer that cannot be read raises `gcloud.Failed`: the command is tried again. It never leads to an action.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from deeplearn.cloud import gcloud
from deeplearn.cloud.gcloud import printable

# The workers' states (see worker.sh): words, or the exit status of the command.
STATES = r"new|running|lost|stopped|-?[0-9]+"
# A cut-off state must not count: "1" may be the start of "143". So a space or the end of the line has to follow.
_STATUS = re.compile(rf"^worker (\S*) ({STATES})(?: ([^\n]*)|\r?\n)", re.MULTILINE)


def read_state(text: str) -> tuple[str, str, str]:
    """The state, the cause of a failure and the accelerator type in the answer to `gcloud.describe`.

    The last two are empty if the answer lacks them. Warnings before and after the JSON object are ignored.

    >>> read_state('{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [{"node": {"acceleratorType": "v4-8"}}]}}')
    ('ACTIVE', '', 'v4-8')
    >>> read_state('{"state": {"state": "FAILED", "failedData": {"error": {"code": 8, "message": "no quota"}}}}')
    ('FAILED', 'no quota', '')

    Raises:
      gcloud.Failed: the answer has no state.
    """
    start = re.search(r"^\{", text, re.MULTILINE)
    try:
        resource = json.JSONDecoder().raw_decode(text, start.start())[0] if start else None
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        resource = None
    state = _string(resource, "state", "state")
    if not state:
        said = printable(text)[:100]
        raise gcloud.Failed(f"it printed no state of the TPU, but {said}" if said else "its answer is empty")
    why = " ".join(_string(resource, "state", "failedData", "error", "message").split())
    return printable(state), printable(why), _string(resource, "tpu", "nodeSpec", 0, "node", "acceleratorType")


def read_node(text: str) -> str:
    r"""The state in the answer to `gcloud.node`: its last line, as warnings may come first.

    >>> read_node("WARNING: update gcloud\nPREEMPTED\n"), read_node("")
    ('PREEMPTED', '')
    """
    return text.strip().split("\n")[-1].strip()


def workers(text: str) -> list[tuple[str, str, str]]:
    r"""(host, state, last line of the log) of each worker, sorted by host.

    Only "\n" ends a line: a log may contain any other line separator. Lines that are no worker's status are ignored.

    >>> workers("worker a-w-1 running step 9\nSSH: connecting\nworker a-w-0 0 done: all of it\n")
    [('a-w-0', '0', 'done: all of it'), ('a-w-1', 'running', 'step 9')]
    >>> workers("worker a-w-0 running step 1\u2028worker a-w-1 lost\n")
    [('a-w-0', 'running', 'step 1 worker a-w-1 lost')]
    """
    return sorted((host, state, printable(last)[: gcloud.SHOWN]) for host, state, last in _STATUS.findall(text))


def expected_workers(text: str) -> int | None:
    r"""How many workers `gcloud.ssh` connects to, by what gcloud prints on standard error; None if it doesn't say.

    >>> expected_workers("Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of 4 workers.\n")
    4
    """
    if total := re.search(r"^Using ssh batch size of.* with a total of ([0-9]+) workers?\b", text, re.MULTILINE):
        return int(total[1])
    return len(set(re.findall(r"^SSH: Attempting to connect to worker ([0-9]+)", text, re.MULTILINE))) or None


def all_workers(out: str, err: str) -> list[tuple[str, str, str]]:
    """`workers`, of every worker of the TPU: what some of them do does not say what is to be done.

    Args:
      out, err: what gcloud printed on standard output and on standard error.

    Raises:
      gcloud.Failed: another number of workers answered than gcloud asked.
    """
    answered, expected = workers(out), expected_workers(err)
    if not answered:
        raise gcloud.Failed("no worker answered")
    if expected is not None and len(answered) != expected:
        raise gcloud.Failed(f"{len(answered)} of {expected} workers answered")
    return answered


def judge(states: Sequence[str]) -> str:
    """What is to be done when the workers are in these states.

    >>> [judge(states) for states in (["new"], ["running", "0"], ["0", "0"], ["running", "lost"], ["1", "running"])]
    ['install', 'wait', 'done', 'start', 'crashed']
    """
    there = set(states)
    if "new" in there:
        return "install"
    if "2" in there:
        return "failed"
    if "lost" in there:
        return "start"
    if there - {"running", "stopped", "143", "0"}:
        return "crashed"
    if "running" in there:
        return "wait"
    if there == {"0"}:
        return "done"
    return "stopped" if "stopped" in there else "start"


def _string(value: Any, *path: str | int) -> str:
    """The string at a path of keys and indices in JSON; empty if there is none."""
    for key in path:
        try:
            value = value[key]
        except (TypeError, KeyError, IndexError):
            return ""
    return value if isinstance(value, str) else ""
