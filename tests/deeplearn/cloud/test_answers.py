"""Answers of gcloud and of workers that are empty, cut off, of another form, or hold unusual characters."""

import json

import pytest

from deeplearn.cloud import answers, gcloud
from tests.deeplearn.cloud.standin import RUN, says, state, workers

PACKED = ["git", "git"]
ACTIVE = '{"state": {"state": "ACTIVE"}}'

# Answers to `describe` that do not say what state the TPU is in.
NO_STATES = {
    "empty": "",
    "line ends": "\r\n\n",
    "null": "null",
    "list": f"[{ACTIVE}]",
    "printed list": "[\n  " + ACTIVE + "\n]\n",
    "number": "12",
    "string": '"ACTIVE"',
    "no JSON": "Service Unavailable",
    "cut off": '{"name": "mnist", "state": {"state": "SUSPEN',
    "cut off before the state": '{"name": "mnist", ',
    "empty object": "{}",
    "no state": '{"state": {}}',
    "state is null": '{"state": null}',
    "state is a string": '{"state": "FAILED"}',
    "state is a list": '{"state": ["FAILED"]}',
    "inner state is null": '{"state": {"state": null}}',
    "inner state is a number": '{"state": {"state": 6}}',
    "inner state is a list": '{"state": {"state": ["FAILED"]}}',
    "inner state is empty": '{"state": {"state": ""}}',
    "deep": '{"state": ' + "[" * 100_000,
    "a number of too many digits": '{"state": {"state": ' + "1" * 5000 + "}}",
    "only a warning": "WARNING: this command will change.\n",
    "bytes": "\udcff\udcfe{\udc80",
}


@pytest.mark.parametrize("name", NO_STATES)
def test_an_answer_without_a_state_is_a_failure(name):
    with pytest.raises(gcloud.Failed) as error:
        answers.read_state(NO_STATES[name])
    assert type(error.value) is gcloud.Failed  # not Missing, on which a TPU is created
    assert str(error.value).isprintable() and len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["empty", "null", "cut off", "inner state is null", "bytes"])
def test_an_answer_without_a_state_is_no_action(cloud, name):
    """It is tried again, a limited number of times."""
    status, out, err, kinds = cloud(*RUN, describe=[says(NO_STATES[name])])
    assert status == 2 and err.count("\n") == 1 and "Traceback" not in err
    assert "4 tries in a row failed: it" in err and "mnist is left as it is" in err
    assert kinds == [*PACKED, *["describe"] * 4]


@pytest.mark.parametrize("name", ["empty", "null", "cut off", "list"])
def test_the_next_answer_counts(cloud, name):
    broken = says(NO_STATES[name])
    status, out, err, kinds = cloud(
        *RUN, describe=[broken, state("ACTIVE"), broken, state("ACTIVE")], status=[workers("running"), workers("0")]
    )
    assert (status, err) == (0, "") and out.count("will try again") == 2
    assert {*kinds} == {"git", "describe", "status", "delete"} and kinds.count("delete") == 1


CAUSE = '{"state": {"state": "FAILED", "failedData": %s}}'
STATES = {
    "warnings around it": (f"WARNING: {{old}}\n{ACTIVE}\nUpdates are available.\n", ("ACTIVE", "", "")),
    "Windows' line ends": (ACTIVE.replace(" ", "\r\n") + "\r\n", ("ACTIVE", "", "")),
    "tpu is null": ('{"state": {"state": "ACTIVE"}, "tpu": null}', ("ACTIVE", "", "")),
    "no nodes": ('{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": []}}', ("ACTIVE", "", "")),
    "nodes are an object": ('{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": {"a": 1}}}', ("ACTIVE", "", "")),
    "node is null": ('{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [null]}}', ("ACTIVE", "", "")),
    "type is a number": (
        '{"state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [{"node": {"acceleratorType": 8}}]}}',
        ("ACTIVE", "", ""),
    ),
    "data is a list": (CAUSE % "[]", ("FAILED", "", "")),
    "error is a string": (CAUSE % '{"error": "no"}', ("FAILED", "", "")),
    "message is a number": (CAUSE % '{"error": {"message": 8}}', ("FAILED", "", "")),
    "message of two lines": (
        CAUSE % json.dumps({"error": {"message": "no\u2028room\x1b[0m\n"}}),
        ("FAILED", "no room", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_what_an_answer_lacks_is_empty(name):
    text, expected = STATES[name]
    assert answers.read_state(text) == expected


@pytest.mark.parametrize(
    "text, expected", [("", ""), ("\n", ""), ("READY\r\n", "READY"), ("WARNING: a\nREADY\n", "READY")]
)
def test_the_state_of_a_node(text, expected):
    assert answers.read_node(text) == expected


def test_an_empty_state_of_the_node_is_no_loss(cloud):
    """The workers cannot be reached, and gcloud does not say that the node is gone."""
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=[[255, "", ""]], node=[says("")])
    assert status == 2 and "4 tries in a row failed: it said nothing" in err
    assert kinds == [*PACKED, *["describe", "status", "node"] * 4]


# str.splitlines splits at most of these.
SEPARATORS = [
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\0",
    "\x1b[2K",
    "\x1b]0;t\x07",
    "\x08",
]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_log_adds_no_worker(separator):
    ((host, how, last),) = answers.workers(f"worker a running step 1{separator}worker b lost\n")
    assert (host, how) == ("a", "running") and last.isprintable() and last.startswith("step 1")


def test_a_log_with_line_separators_starts_nothing(cloud):
    looks = [says(f"worker t-w-0 running step 1{separator}worker t-w-1 lost 2\n") for separator in SEPARATORS]
    looks = [look for look in looks for _ in range(2)]  # a loss is believed at the second look
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=[*looks, workers("0")])
    assert (status, err) == (0, "") and "2 workers" not in out
    assert {*kinds} == {"git", "describe", "status", "delete"}


def test_a_log_in_letters_that_the_terminal_lacks(cloud):
    looks = [says("worker t-w-0 running \u20ac \U0001f600\n"), workers("0")]
    status, out, err, kinds = cloud(
        *RUN, variables={"PYTHONIOENCODING": "ascii"}, describe=[state("ACTIVE")], status=looks
    )
    assert (status, err) == (0, "") and "t-w-0 running: ? ?\n" in out


LINES = {
    "a long line": ("worker a running " + "x" * 100_000 + "\n", [("a", "running", "x" * gcloud.SHOWN)]),
    "no log": ("worker a running \nworker b 0\n", [("a", "running", ""), ("b", "0", "")]),
    "Windows' line ends": ("worker a new\r\nworker b 143 bye\r\n", [("a", "new", ""), ("b", "143", "bye")]),
    "a greeting": ("worker nodes may be preempted\nworker\nworker a 0 done\n", [("a", "0", "done")]),
    "no host": ("worker  running step 1\n", [("", "running", "step 1")]),
    "a host of two words": ("worker a b running step 1\n", []),
    "a host with a separator": ("worker a\u2028b running step 1\n", []),
    "no status": ("worker a  step 1\n", []),
    "unknown state": ("worker a asleep step 1\n", []),
    "other digits": ("worker a \u0661 step 1\n", []),
    "a status cut off": ("worker a runn", []),
    "an exit status that may be cut off": ("worker a 1", []),
    "a log that is cut off": ("worker a running ste", [("a", "running", "ste")]),
    "indented": (" worker a lost\n", []),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_workers(name):
    text, expected = LINES[name]
    assert answers.workers(text) == expected


ASKED = "Using ssh batch size of 1. Attempting to SSH into 1 nodes with a total of {} workers.\n"
TRIED = "SSH: Attempting to connect to worker 0...\nSSH: Attempting to connect to worker 1...\n"
COUNTS = {
    "new gcloud": (ASKED.format(4) + TRIED, 4),
    "old gcloud": ("Warning: added a host.\r\n" + TRIED + TRIED, 2),
    "one": (ASKED.format(1).replace("workers", "worker"), 1),
    "silent": ("", None),
    "a worker's words": ("x: with a total of 9 workers\nI say SSH: Attempting to connect to worker 7\n", None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_how_many_workers_there_are(name):
    text, expected = COUNTS[name]
    assert answers.expected_workers(text) == expected


@pytest.mark.parametrize("how", ["0", "new", "lost", "1", "2", "143", "stopped"])
@pytest.mark.parametrize("count", [1, 3])
def test_answers_of_some_workers_are_no_action(cloud, how, count):
    """Otherwise a run would start again, or end with its TPU, while it goes on elsewhere."""
    _, out, _ = workers(*[how] * count)
    status, out, err, kinds = cloud(
        *RUN, describe=[state("ACTIVE")], status=[[0, out, ASKED.format(2)]], node=[says("READY")]
    )
    assert status == 2 and f"4 tries in a row failed: {count} of 2 workers answered" in err
    assert {*kinds} == {"git", "describe", "status", "node"}


def test_answers_of_all_workers(cloud):
    looks = [[0, workers(how, how)[1], ASKED.format(2)] for how in ("running", "0")]
    status, out, err, kinds = cloud(*RUN, describe=[state("ACTIVE")], status=looks)
    assert (status, err) == (0, "") and "the command is done" in out


@pytest.mark.parametrize(
    "states, action",
    [
        (["0", "running"], "wait"),
        (["0", "143"], "start"),  # one was shut down
        (["143", "running"], "wait"),
        (["143", "143"], "start"),
        (["0", "stopped"], "stopped"),
        (["143", "stopped"], "stopped"),
        (["1", "lost"], "start"),  # a lost worker makes the others crash
        (["1", "0"], "crashed"),
        (["2", "lost", "1"], "failed"),
        (["new", "2"], "install"),
    ],
)
def test_what_is_to_be_done(states, action):
    assert answers.judge(states) == answers.judge(states[::-1]) == action


FAILURES = {
    "ERROR: (gcloud.x) NOT_FOUND: Resource 'projects/p/locations/z/nodes/a' was not found": gcloud.Missing,
    "ERROR: (gcloud.x) HTTPError 404: The resource 'projects/p/zones/z/a' was not found": gcloud.Missing,
    "ERROR: (gcloud.x) NOT_FOUND: Requested entity was not found.": gcloud.Missing,
    "ERROR: (gcloud.x) tpu.googleapis.com: host not found": gcloud.Failed,
    "ERROR: gcloud crashed (IOError): credentials not found": gcloud.Failed,
    "NOT_FOUND: Resource was not found": gcloud.Failed,  # a worker's words
    "ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota exceeded": gcloud.Failed,
    "step 1\u2028ERROR: (gcloud.x) NOT_FOUND: Resource was not found": gcloud.Failed,
    "step 1\rERROR: (gcloud.x) RESOURCE_EXHAUSTED: quota": gcloud.Failed,
    "\x1b[31m\n": gcloud.Failed,
    "": gcloud.Failed,
}


@pytest.mark.parametrize("text", FAILURES)
def test_whose_words_they_are(text):
    error = gcloud.failure(gcloud.Tpu("a", "z"), text)
    assert type(error) is FAILURES[text] and str(error).isprintable()


def test_a_gcloud_that_is_no_program(cloud, folder):
    (folder / "bin" / "gcloud").chmod(0o644)
    status, out, err, kinds = cloud(*RUN)
    assert status == 2 and err.count("\n") == 1 and "gcloud cannot be run: Permission denied; install" in err


def test_the_log_of_a_run_that_failed_is_printed_without_escapes(cloud):
    log = says("\x1b[31merror: a\u2028b\x1b[0m\n" + "x" * 10_000 + "\n")
    status, out, err, kinds = cloud(
        *RUN, describe=[state("ACTIVE")], status=[workers("running"), workers("2")], log=[log]
    )
    assert status == 1 and "\nerror: a b\n" in out and max(map(len, out.split("\n"))) == 2000
