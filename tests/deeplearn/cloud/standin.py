"""A stand-in for gcloud and git: it notes how it is called, and answers what the test wrote down."""

import json

# An answer is [exit status, standard output, standard error]; of each kind they come in order, and the last one stays.
# In the output "\udcff" is the byte 255.
STAND_IN = """#!{python} -IS
import json, pathlib, re, sys
here, argv = pathlib.Path({folder!r}), sys.argv[1:]
line = " ".join(argv)
kind = "git" if sys.argv[0].endswith("git") else argv[3]
if kind == "describe" and argv[2] == "tpu-vm":
    kind = "node"
if match := re.search(r"worker\\.sh (\\w+)", line):
    kind = match[1]
with open(here / "calls", "a") as file:
    file.write(json.dumps([kind, argv]) + "\\n")
answers = json.loads((here / "answers").read_text()).get(kind, [[0, "", ""]])
count = sum(json.loads(call)[0] == kind for call in (here / "calls").read_text().splitlines())
status, out, err = answers[min(count, len(answers)) - 1]
sys.stdout.buffer.write(out.encode(errors="surrogateescape"))
sys.stderr.write(err)
sys.exit(status)
"""

COMMAND = "train --config=experiments/mnist_cnn.py --workdir=gs://bucket/mnist"
ASKED = ("--name=mnist", "--zone=us-west4-a", "--every=0", "--retries=3")
RUN = ("--do=run", *ASKED, "--accelerator=v5litepod-16", "--spot", f"--command={COMMAND}")


def says(text):
    """The answer of a command that succeeds."""
    return [0, text, ""]


def state(name, kind="v5litepod-16", **more):
    """The answer to `describe`."""
    node = {"node": {"acceleratorType": kind}, "nodeId": "mnist"}
    return says(json.dumps({"name": "mnist", "state": {"state": name, **more}, "tpu": {"nodeSpec": [node]}}))


def workers(*states):
    """The answer to `worker.sh status` on every worker."""
    return says("".join(f"worker t-w-{i} {how} step {i}\n" for i, how in enumerate(states)))


def refuses(text, status=1):
    """The answer of a gcloud that fails."""
    return [status, "", f"ERROR: (gcloud.compute.tpus) {text}\n"]


ABSENT = refuses("NOT_FOUND: Resource 'projects/p/locations/us-west4-a/queuedResources/mnist' was not found")


def calls(folder):
    """Every call so far, as (kind, arguments)."""
    return [tuple(json.loads(line)) for line in (folder / "calls").read_text().splitlines()]
