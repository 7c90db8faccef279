"""Runs of several real processes on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WAIT = 150  # seconds, of which a test needs a few; what takes longer hangs
RUN = ("train", "--config=digits_mlp", "--config.steps=42", "--config.checkpoint_every=21")


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def finished(processes):
    """(status, standard output, standard error) of each, once it has ended."""
    ends = time.monotonic() + WAIT
    done = [process.communicate(timeout=ends - time.monotonic()) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, done, strict=True)]


@contextlib.contextmanager
def starter(home, directory):
    """`start(number, *arguments)`: so many processes of one command; all are gone at the end.

    own: arguments of single processes, by rank; places: their directories; devices: of each; absent: ranks that are not
    started; token: what DEEPLEARN_TOKEN is for all of them.
    """
    started = []
    kept = {name: value for name, value in os.environ.items() if name not in ("TFDS_DATA_DIR", "DEEPLEARN_TOKEN")}

    def start(number, *arguments, own=None, places=None, devices=1, absent=(), token=None):
        port, processes = free_port(), []
        for rank in set(range(number)) - {*absent}:
            place = (f"--coordinator=localhost:{port}", f"--processes={number}", f"--process={rank}")
            command = [sys.executable, "-m", "deeplearn", *arguments, *(place if number > 1 else ())]
            environment = {
                **kept,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                # Compiled as fast as in tests (of two numbers the last counts); a thread for every device that waits.
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
                "NPROC": "8",
                "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
                "XDG_CACHE_HOME": str(home / "cache"),
                "TFDS_DATA_DIR": str(home / "data"),
                "RANK_IN_TEST": str(rank),
                **({"DEEPLEARN_TOKEN": token} if token else {}),
            }
            process = subprocess.Popen(
                [*command, *(own or {}).get(rank, ())],
                env=environment,
                cwd=(places or {}).get(rank, directory),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            processes.append(process)
        return processes

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()
